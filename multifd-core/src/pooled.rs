//! Preparing packets on threads that are not the channels'.

use crate::{IndependentPackets, Method, MethodError, Observer, Prepare, Unpack};
use std::sync::Arc;

/// Threads that run short jobs of pure computation, such as a rayon pool.
pub trait Workers: Send + Sync {
    /// How many jobs run at once.
    fn threads(&self) -> usize;

    /// Runs `job` on one of the threads, soon; never on the caller's. A job that is dropped instead ends the transfer.
    fn spawn(&self, job: Box<dyn FnOnce() + Send>);
}

/// Where packets are prepared, as a [`Method`] says it; made by [`Pooled`].
#[derive(Clone)]
pub struct PreparePool {
    pub(crate) workers: Arc<dyn Workers>,
}

impl std::fmt::Debug for PreparePool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparePool")
            .field("threads", &self.workers.threads())
            .finish()
    }
}

/// A method whose packets are prepared by a pool of threads while the channels do nothing but I/O: as many processors
/// compress as the pool has threads, whatever the number of channels.
///
/// Only methods with [`IndependentPackets`] can be pooled; a stream that lives as long as its channel can not:
///
/// ```compile_fail
/// # struct Stream;
/// # impl multifd_core::Method for Stream {
/// #     fn kind(&self) -> multifd_packet::Method { multifd_packet::Method::Zlib }
/// #     fn preparer(&self) -> Result<Box<dyn multifd_core::Prepare>, multifd_core::MethodError> { unimplemented!() }
/// #     fn unpacker(&self) -> Result<Box<dyn multifd_core::Unpack>, multifd_core::MethodError> { unimplemented!() }
/// # }
/// # fn workers() -> std::sync::Arc<dyn multifd_core::Workers> { unimplemented!() }
/// // error: the trait `IndependentPackets` is not implemented for `Stream`
/// let pooled = multifd_core::Pooled::new(Stream, workers());
/// ```
pub struct Pooled<M> {
    method: M,
    workers: Arc<dyn Workers>,
}

impl<M> std::fmt::Debug for Pooled<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pooled")
            .field("threads", &self.workers.threads())
            .finish_non_exhaustive()
    }
}

impl<M: IndependentPackets> Pooled<M> {
    /// `method`, prepared on `workers`.
    pub fn new(method: M, workers: Arc<dyn Workers>) -> Self {
        Self { method, workers }
    }
}

impl<M: IndependentPackets> Method for Pooled<M> {
    fn kind(&self) -> multifd_packet::Method {
        self.method.kind()
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        self.method.preparer()
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        self.method.unpacker()
    }

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.method.observer()
    }

    fn pool(&self) -> Option<PreparePool> {
        Some(PreparePool {
            workers: Arc::clone(&self.workers),
        })
    }
}
