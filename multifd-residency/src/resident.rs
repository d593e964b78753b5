//! A destination whose new memory gets its pages before it is written.

use crate::residency::Residency;
use crate::writer::Writer;
use multifd_core::memory::RamWriter;
use multifd_core::packet::{Geometry, RamPacket};
use multifd_core::{Destination, Error, Fill, Place};

/// A [`Destination`] with residency; made by [`Residency::decorate`].
#[derive(Debug)]
pub struct Resident<D> {
    inner: D,
    residency: Residency,
}

impl Residency {
    /// A destination like `inner`, whose new memory gets its pages before it is written.
    pub fn decorate<D: Destination>(&self, inner: D) -> Resident<D> {
        Resident {
            inner,
            residency: self.clone(),
        }
    }
}

impl<D: Destination> Destination for Resident<D> {
    fn start(&self) -> Result<Geometry, Error> {
        self.inner.start()
    }

    fn place(&self, channel: u8) -> Result<Box<dyn Place>, Error> {
        Ok(Box::new(ResidentPlace {
            inner: self.inner.place(channel)?,
            writer: self.residency.writer(),
            channel,
        }))
    }
}

struct ResidentPlace {
    inner: Box<dyn Place>,
    writer: Writer,
    channel: u8,
}

impl Place for ResidentPlace {
    fn take(&mut self, packet: &RamPacket<'_>, fill: &mut Fill<'_>) -> Result<(), Error> {
        let Self {
            inner,
            writer,
            channel,
        } = self;
        inner.take(packet, &mut |pages| {
            let block = pages.block();
            for offset in pages.zeros() {
                writer.clear(block, offset).map_err(|cause| Error::Place {
                    channel: *channel,
                    cause,
                })?;
            }
            writer.prepare(block, &mut pages.runs());
            fill(&pages.with_zeros_done())
        })
    }
}
