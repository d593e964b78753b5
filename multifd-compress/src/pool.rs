//! A rayon pool on which packets are compressed.

use multifd_core::{MethodError, Workers};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads that compress while the channels do nothing but I/O: for [`multifd_core::Pooled`].
///
/// ```
/// use multifd_compress::{CompressPool, Zstd};
/// use multifd_core::Pooled;
/// use std::sync::Arc;
///
/// let method = Pooled::new(Zstd::new(3)?, Arc::new(CompressPool::new(2)?));
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
    /// [`MethodError::Threads`] if they can not be had.
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
