//! No compression: pages are IOVs already.

use super::incoming::IncomingPages;
use super::method::{IndependentPackets, Method, PayloadBuf, Prepare, Unpack};
use super::pages::PageBatch;
use super::transport::RecvChannel;
use crate::{MethodError, RegionBuf, UnpackError};
use multifd_packet::Compression;

/// The method `none`: guest memory goes to the kernel, and comes from it, without a copy of ours.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Method for Plain {
    fn kind(&self) -> Compression {
        Compression::None
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(Self))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Ok(Box::new(PlainUnpack::default()))
    }
}

impl IndependentPackets for Plain {}

impl Prepare for Plain {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        pages.normal_runs().for_each(|run| payload.push_run(run));
        Ok(())
    }
}

#[derive(Default)]
struct PlainUnpack {
    regions: RegionBuf,
}

impl Unpack for PlainUnpack {
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError> {
        let regions = self.regions.begin();
        regions.extend(pages.joined());
        Ok(channel.recv_regions(regions)?)
    }
}
