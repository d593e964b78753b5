//! UADK: what the accelerators of Kunpeng processors make and take, in software.

use crate::paged::{PagedCompress, PagedDecompress};
use multifd_core::{IndependentPackets, Method, MethodError, Prepare, Unpack};

/// The method UADK: each page a complete zlib stream.
///
/// Made in software, so that a machine without the accelerator can take part in a migration with
/// one that has it. It follows QEMU's documented layout; it has not been tried against the
/// hardware.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uadk;

impl IndependentPackets for Uadk {}

impl Method for Uadk {
    fn kind(&self) -> multifd_packet::Compression {
        multifd_packet::Compression::Uadk
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(PagedCompress::new(self.kind(), 1, true)))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Ok(Box::new(PagedDecompress::new(self.kind(), true)))
    }
}
