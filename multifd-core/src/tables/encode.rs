//! How a sender encodes: by which method, and on which threads.

use super::method::{IndependentPackets, Method};
use std::sync::Arc;

/// Threads that run short jobs of pure computation, such as a rayon pool.
pub trait Workers: Send + Sync {
    /// How many jobs run at once.
    fn threads(&self) -> usize;

    /// Runs `job` on one of the threads, soon; never on the caller's. A job that is dropped instead
    /// ends the transfer.
    fn spawn(&self, job: Box<dyn FnOnce() + Send>);
}

/// By which method a sender encodes pages, and on which threads.
///
/// A reference to a [`Method`] converts into [`Encode::on_channels`].
#[derive(Clone)]
pub struct Encode<'a> {
    pub(crate) method: &'a dyn Method,
    pub(crate) workers: Option<Arc<dyn Workers>>,
}

impl<'a> Encode<'a> {
    /// Each channel's thread encodes what it sends.
    pub fn on_channels(method: &'a dyn Method) -> Self {
        Self {
            method,
            workers: None,
        }
    }

    /// A pool encodes, and the channels' threads do I/O only: as many processors compress as the
    /// pool has threads, whatever the number of channels.
    ///
    /// Only methods with [`IndependentPackets`] can be pooled. A stream that lives as long as its
    /// channel cannot:
    ///
    /// ```compile_fail
    /// # use multifd_core::{Encode, Method, MethodError, Prepare, Unpack, Workers};
    /// # use multifd_core::packet::Compression;
    /// # use std::sync::Arc;
    /// # struct Stream;
    /// # impl Method for Stream {
    /// #     fn kind(&self) -> Compression { Compression::Zlib }
    /// #     fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> { unimplemented!() }
    /// #     fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> { unimplemented!() }
    /// # }
    /// # fn workers() -> Arc<dyn Workers> { unimplemented!() }
    /// // error: the trait `IndependentPackets` is not implemented for `Stream`
    /// let encode = Encode::on_pool(&Stream, workers());
    /// ```
    pub fn on_pool(method: &'a dyn IndependentPackets, workers: Arc<dyn Workers>) -> Self {
        Self {
            method,
            workers: Some(workers),
        }
    }
}

impl<'a, M: Method> From<&'a M> for Encode<'a> {
    fn from(method: &'a M) -> Self {
        Self::on_channels(method)
    }
}

impl<'a> From<&'a dyn Method> for Encode<'a> {
    fn from(method: &'a dyn Method) -> Self {
        Self::on_channels(method)
    }
}

impl std::fmt::Debug for Encode<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encode")
            .field("method", &self.method.kind())
            .field(
                "pool",
                &self.workers.as_ref().map(|workers| workers.threads()),
            )
            .finish()
    }
}
