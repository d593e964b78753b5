//! QPL: what Intel's IAA accelerator makes and takes, in software.

use crate::paged::{PagedCompress, PagedDecompress};
use multifd_core::{IndependentPackets, Method, MethodError, Prepare, Unpack};

/// The method QPL: each page a complete raw deflate stream.
///
/// Made in software, so that a machine without the accelerator can take part in a migration with
/// one that has it. It follows QEMU's documented layout; it has not been tried against the
/// hardware.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qpl;

impl IndependentPackets for Qpl {}

impl Method for Qpl {
    fn kind(&self) -> multifd_packet::Compression {
        multifd_packet::Compression::Qpl
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(PagedCompress::new(self.kind(), 1, false)))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Ok(Box::new(PagedDecompress::new(self.kind(), false)))
    }
}
