//! The destination: where received pages go.

use super::incoming::IncomingPages;
use crate::{BlockError, Error, RamMap};
use multifd_packet::{Geometry, RamPacket};
use std::sync::Arc;

/// Puts a packet's pages in place: clears its zero pages and takes its payload from the channel.
pub type Fill<'f> = dyn FnMut(&IncomingPages<'_>) -> Result<(), Error> + 'f;

/// Where a receiver's pages go: guest RAM, a file, the next hop.
///
/// A [`RamMap`] is one: pages go into its blocks.
pub trait Destination: Send + Sync {
    /// Called once, before any channel is attached. Returns the shape of the packets it takes.
    ///
    /// # Errors
    /// [`Error`], if nothing can be received into it.
    fn start(&self) -> Result<Geometry, Error>;

    /// The part of it that one channel's thread uses. `channel` is the channel's number, for
    /// errors.
    ///
    /// # Errors
    /// [`Error`], if there cannot be one.
    fn place(&self, channel: u8) -> Result<Box<dyn Place>, Error>;
}

/// One channel's way to a [`Destination`].
pub trait Place: Send {
    /// Takes one packet with pages. Says where its pages go, by an [`IncomingPages`], and has
    /// `fill` put them there: exactly once.
    ///
    /// # Errors
    /// [`Error::UnknownBlock`], [`Error::Place`] or [`Error::Destination`]; what `fill` returns is
    /// passed on unchanged.
    fn take(&mut self, packet: &RamPacket<'_>, fill: &mut Fill<'_>) -> Result<(), Error>;
}

impl<D: Destination + ?Sized> Destination for Arc<D> {
    fn start(&self) -> Result<Geometry, Error> {
        (**self).start()
    }

    fn place(&self, channel: u8) -> Result<Box<dyn Place>, Error> {
        (**self).place(channel)
    }
}

impl Destination for RamMap {
    fn start(&self) -> Result<Geometry, Error> {
        if let Some(block) = self.blocks().iter().find(|block| block.is_frozen()) {
            return Err(Error::Block(BlockError::Frozen {
                block: block.name().into(),
            }));
        }
        Ok(self.geometry()?)
    }

    fn place(&self, channel: u8) -> Result<Box<dyn Place>, Error> {
        Ok(Box::new(InRam {
            ram: self.clone(),
            channel,
        }))
    }
}

/// A channel's way into RAM blocks.
struct InRam {
    ram: RamMap,
    channel: u8,
}

impl Place for InRam {
    fn take(&mut self, packet: &RamPacket<'_>, fill: &mut Fill<'_>) -> Result<(), Error> {
        let channel = self.channel;
        let name = packet.fields().block;
        let block = self.ram.find(name).ok_or_else(|| Error::UnknownBlock {
            channel,
            block: name.into(),
        })?;
        let pages = IncomingPages::in_place(block, packet)
            .map_err(|cause| Error::Place { channel, cause })?;
        fill(&pages)
    }
}
