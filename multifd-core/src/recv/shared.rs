//! The state that the channels' threads of a receiver share.

use super::device_handlers::DeviceSink;
use super::packet_numbers::PacketNumbers;
use super::rounds::Rounds;
use crate::{Common, Destination, MemoryBudget, Method, StatsHandle};
use multifd_packet::{Compression, Geometry, PrivateCode, Uuid};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

pub(super) struct Shared {
    pub(super) destination: Box<dyn Destination>,
    pub(super) geometry: Geometry,
    pub(super) methods: Vec<Arc<dyn Method>>,
    pub(super) seen: SeenMethods,
    pub(super) require_checksums: bool,
    pub(super) uuid: OnceLock<Uuid>,
    pub(super) device_state: Option<Arc<dyn DeviceSink>>,
    pub(super) memory_budget: MemoryBudget,
    pub(super) common: Common,
    pub(super) rounds: Arc<Rounds>,
    pub(super) stats: StatsHandle,
    /// The numbers of the RAM packets that have come.
    pub(super) numbers: PacketNumbers,
}

/// Methods that packets with contents have used.
#[derive(Default)]
pub(super) struct SeenMethods(AtomicU32);

impl SeenMethods {
    /// A bit for each value of the method's five bits.
    fn bit(method: Compression) -> u32 {
        1 << (method.bits() >> 1)
    }

    pub(super) fn note(&self, method: Compression) {
        self.0.fetch_or(Self::bit(method), Ordering::Relaxed);
    }

    /// QEMU's methods in their order, then private ones.
    pub(super) fn all(&self) -> Vec<Compression> {
        let seen = self.0.load(Ordering::Relaxed);
        let private = (0..PrivateCode::COUNT)
            .filter_map(PrivateCode::new)
            .map(Compression::Private);
        let known = Compression::ALL.into_iter().chain(private);
        known
            .filter(|&method| seen & Self::bit(method) != 0)
            .collect()
    }
}
