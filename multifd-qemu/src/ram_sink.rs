//! Where the RAM of a received migration goes.

use crate::{BlockInfo, Configuration, Error};
use multifd_core::{Common, Destination, RamMap, ZeroPages};
use std::sync::Arc;

/// What is known of a VM when its RAM begins to come.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Announced<'a> {
    /// The machine, and what the source had switched on.
    pub configuration: &'a Configuration,
    /// The number of the RAM section.
    pub ram_section: u32,
    /// The RAM blocks, in order.
    pub blocks: &'a [BlockInfo],
    /// Bytes of a guest page.
    pub page_size: u32,
    /// What the receiving engine is configured with.
    pub common: &'a Common,
}

/// Where the RAM of a received migration goes: memory, a file, a store.
///
/// Pages come over channels, into the [`Destination`], and over the main connection, into
/// [`RamSink::page`]: never the same page by both at once.
pub trait RamSink: Send {
    /// Called once, when the RAM blocks are known and nothing has been received.
    ///
    /// # Errors
    /// [`Error`], if they cannot be received.
    fn start(&mut self, announced: &Announced<'_>) -> Result<Arc<dyn Destination>, Error>;

    /// Takes a page of the main connection: the one at `offset` (bytes) of the block of number
    /// `block`. Without contents it is zero.
    ///
    /// # Errors
    /// [`Error`], if the page does not lie in the block, or cannot be kept.
    fn page(&mut self, block: usize, offset: u64, contents: Option<&[u8]>) -> Result<(), Error>;

    /// Called once, when all has been received. Returns the RAM, and how to know its zero pages.
    ///
    /// # Errors
    /// [`Error`], if it cannot be kept.
    fn finish(&mut self) -> Result<(RamMap, ZeroPages), Error>;
}
