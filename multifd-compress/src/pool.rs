//! A rayon pool on which packets are compressed.

use multifd_core::{MethodError, Workers};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads that compress while the channels do nothing but I/O: for
/// [`multifd_core::Encode::on_pool`].
///
/// ```
/// # #[cfg(feature = "zstd")]
/// # {
/// use multifd_compress::{CompressPool, Zstd};
/// use multifd_core::Encode;
/// use std::sync::Arc;
///
/// let zstd = Zstd::new(3)?;
/// let encode = Encode::on_pool(&zstd, Arc::new(CompressPool::new(2)?));
/// # }
/// # Ok::<(), multifd_core::MethodError>(())
/// ```
#[derive(Debug)]
pub struct CompressPool {
    pool: ThreadPool,
}

impl CompressPool {
    /// A pool of `threads` threads, or of as many as there are processors for 0.
    ///
    /// # Errors
    /// [`MethodError::Threads`] if they cannot be had.
    pub fn new(threads: usize) -> Result<Self, MethodError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("multifd-pool-{index}"))
            .build()
            .map_err(|error| MethodError::Threads {
                threads,
                reason: error.to_string(),
            })?;
        Ok(Self { pool })
    }
}

impl Workers for CompressPool {
    fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn spawn(&self, job: Box<dyn FnOnce() + Send>) {
        self.pool.spawn_fifo(job);
    }
}
