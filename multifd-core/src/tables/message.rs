//! A message ready for a channel.

use super::pages::PageBatch;
use crate::Iov;

/// A message as a transport gets it: the header, the payload's IOVs, and, for pages, their place in
/// guest memory.
#[derive(Debug)]
pub struct Message<'a> {
    pub(crate) iovs: &'a [Iov<'a>],
    pub(crate) pages: Option<&'a PageBatch>,
}

impl<'a> Message<'a> {
    /// A message of these IOVs, the first being its header; the engine makes its own, this one is
    /// to try out a transport alone.
    pub fn new(iovs: &'a [Iov<'a>], pages: Option<&'a PageBatch>) -> Self {
        Self { iovs, pages }
    }

    /// Everything that goes over a stream: the header first, then the payload.
    pub fn iovs(&self) -> &'a [Iov<'a>] {
        self.iovs
    }

    /// The header alone.
    pub fn header(&self) -> Option<&Iov<'a>> {
        self.iovs.first()
    }

    /// The payload alone.
    pub fn payload(&self) -> &'a [Iov<'a>] {
        self.iovs.get(1..).unwrap_or_default()
    }

    /// The pages the message is about: `None` for init, SYNC and device-state packets.
    pub fn pages(&self) -> Option<&'a PageBatch> {
        self.pages
    }

    /// Bytes of header and payload together.
    pub fn len(&self) -> usize {
        self.iovs.iter().map(Iov::len).sum()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
