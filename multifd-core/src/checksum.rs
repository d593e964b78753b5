//! The checksum extension on both ends: packets sealed when they are sent, checked when they come.

use crate::{BlockError, Error, PageBatch, PayloadBuf};
use multifd_packet::PacketError;

/// Which bytes a sender covers with checksums. They lie where a peer that does not know them ignores
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Checksums {
    /// Nothing.
    #[default]
    Off,
    /// Packets, and payloads that are bytes of ours: compressed pages. Guest pages that go straight
    /// from memory are not covered, as a running guest may change them on their way.
    On,
    /// All payloads: the caller says that no page changes between being queued and being sent. If
    /// one does, the receiver takes it for damage.
    AtRest,
}

/// Checksums were asked for, and this was built without them.
pub(crate) fn missing() -> Error {
    Error::Unsupported("checksums need the feature \"checksum\" of multifd-core".into())
}

#[cfg(feature = "checksum")]
mod with {
    use super::{BlockError, Checksums, PacketError, PageBatch, PayloadBuf};
    use crate::{Arrival, ChannelError, Progress, RecvChannel, Region, Unblock};
    use multifd_packet::Seal;
    use std::sync::Arc;

    pub(crate) const AVAILABLE: bool = true;

    /// Updates a CRC with guest memory, by way of a copy.
    fn update(crc: &mut crc32fast::Hasher, region: Region<'_>) {
        region.chunks(&mut [0; 4096], |bytes| crc.update(bytes));
    }

    /// CRC-32 of a payload, if it is one that can have a checksum.
    pub(crate) fn payload_crc(
        mode: Checksums,
        batch: &PageBatch,
        payload: &PayloadBuf,
    ) -> Result<Option<u32>, BlockError> {
        let covered = match mode {
            Checksums::Off => false,
            Checksums::On => payload.runs.is_empty(),
            Checksums::AtRest => true,
        };
        if !covered || payload.is_empty() {
            return Ok(None);
        }
        let mut crc = crc32fast::Hasher::new();
        for run in &payload.runs {
            update(&mut crc, batch.block().region(run.offset, run.len)?);
        }
        crc.update(&payload.staged);
        Ok(Some(crc.finalize()))
    }

    /// Seals an encoded packet.
    pub(crate) fn seal(packet: &mut [u8], payload: Option<u32>) -> Result<(), PacketError> {
        Seal::write(packet, payload)
    }

    /// Checks a packet that has come; returns the checksum its payload must have.
    pub(crate) fn verify(
        packet: &[u8],
        has_payload: bool,
        require: bool,
    ) -> Result<Option<u32>, PacketError> {
        match Seal::verify(packet)? {
            None if require => Err(PacketError::NoChecksum),
            Some(Seal { payload: None }) if require && has_payload => Err(PacketError::NoChecksum),
            seal => Ok(seal.and_then(|seal| seal.payload)),
        }
    }

    /// Has `unpack` take a payload from `channel`; says whether its CRC-32 is the one expected, if
    /// one is.
    pub(crate) fn checked<E>(
        channel: &mut dyn RecvChannel,
        expected: Option<u32>,
        unpack: impl FnOnce(&mut dyn RecvChannel) -> Result<(), E>,
    ) -> Result<Result<(), PacketError>, E> {
        let Some(expected) = expected else {
            return unpack(channel).map(Ok);
        };
        let mut summing = Summing {
            inner: channel,
            crc: crc32fast::Hasher::new(),
        };
        unpack(&mut summing)?;
        let seal = Seal {
            payload: Some(expected),
        };
        Ok(seal.verify_payload(summing.crc.finalize()))
    }

    /// A channel that computes the CRC-32 of what is received through it.
    struct Summing<'a> {
        inner: &'a mut dyn RecvChannel,
        crc: crc32fast::Hasher,
    }

    impl RecvChannel for Summing<'_> {
        fn recv_start(&mut self, buffer: &mut [u8]) -> Result<Arrival, ChannelError> {
            let arrival = self.inner.recv_start(buffer)?;
            if arrival == Arrival::Message {
                self.crc.update(buffer);
            }
            Ok(arrival)
        }

        fn set_progress(&mut self, progress: Arc<Progress>) {
            self.inner.set_progress(progress);
        }

        fn progress(&self) -> Option<&Progress> {
            self.inner.progress()
        }

        fn recv(&mut self, buffer: &mut [u8]) -> Result<(), ChannelError> {
            self.inner.recv(buffer)?;
            self.crc.update(buffer);
            Ok(())
        }

        fn recv_regions(&mut self, regions: &[Region<'_>]) -> Result<(), ChannelError> {
            self.inner.recv_regions(regions)?;
            for region in regions {
                update(&mut self.crc, *region);
            }
            Ok(())
        }

        fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
            self.inner.unblock_handle()
        }
    }
}

#[cfg(not(feature = "checksum"))]
mod without {
    use super::{BlockError, Checksums, PacketError, PageBatch, PayloadBuf};
    use crate::RecvChannel;

    pub(crate) const AVAILABLE: bool = false;

    #[allow(clippy::unnecessary_wraps)] // The same signatures as with the feature.
    pub(crate) fn payload_crc(
        _: Checksums,
        _: &PageBatch,
        _: &PayloadBuf,
    ) -> Result<Option<u32>, BlockError> {
        Ok(None)
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn seal(_: &mut [u8], _: Option<u32>) -> Result<(), PacketError> {
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn verify(_: &[u8], _: bool, _: bool) -> Result<Option<u32>, PacketError> {
        Ok(None)
    }

    pub(crate) fn checked<E>(
        channel: &mut dyn RecvChannel,
        _: Option<u32>,
        unpack: impl FnOnce(&mut dyn RecvChannel) -> Result<(), E>,
    ) -> Result<Result<(), PacketError>, E> {
        unpack(channel).map(Ok)
    }
}

#[cfg(feature = "checksum")]
pub(crate) use with::{AVAILABLE, checked, payload_crc, seal, verify};
#[cfg(not(feature = "checksum"))]
pub(crate) use without::{AVAILABLE, checked, payload_crc, seal, verify};

#[cfg(all(test, feature = "checksum"))]
mod tests {
    use super::*;
    use crate::{RamBlock, Run};
    use std::sync::Arc;

    #[test]
    fn only_what_is_to_have_a_checksum_is_summed() {
        let batch = PageBatch::new(Arc::new(RamBlock::anonymous("b", 4096, 4096).unwrap()));
        let mut in_place = PayloadBuf::default();
        in_place.push_run(Run {
            offset: 0,
            len: 4096,
        });
        let mut staged = PayloadBuf::default();
        staged.staged().extend([0; 4096]);
        let nothing = PayloadBuf::default();
        let summed = |mode| {
            [&in_place, &staged, &nothing]
                .map(|payload| payload_crc(mode, &batch, payload).unwrap())
        };
        let crc = Some(crc32fast::hash(&[0; 4096]));
        assert_eq!(summed(Checksums::Off), [None; 3]);
        assert_eq!(summed(Checksums::On), [None, crc, None]);
        assert_eq!(summed(Checksums::AtRest), [crc, crc, None]);
    }
}
