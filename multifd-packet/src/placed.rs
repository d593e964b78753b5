//! Where a RAM block lies in a mapped-ram file.

use crate::MappedRamLayout;
use std::string::String;

/// A RAM block, and where its bitmap and its pages lie in a mapped-ram file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedBlock {
    /// The block's name.
    pub name: String,
    /// Its place.
    pub layout: MappedRamLayout,
}
