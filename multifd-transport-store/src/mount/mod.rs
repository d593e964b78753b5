//! Snapshots as folders of read-only files (feature `mount`), by FUSE.
//!
//! ```no_run
//! # fn main() -> Result<(), multifd_transport_store::StoreError> {
//! use multifd_transport_store::mount::{Mount, MountOptions};
//! use multifd_transport_store::{Store, StoreOptions};
//!
//! let store = Store::open(&"/var/lib/snapshots".parse()?, &StoreOptions::default())?;
//! let mount = Mount::start(&store, "/mnt/snapshots".as_ref(), &MountOptions::default())?;
//! // /mnt/snapshots/NAME/vm.mapped and others can be read and mapped now.
//! mount.unmount();
//! # Ok(())
//! # }
//! ```

mod filesystem;
mod session;
mod tree;
mod working_sets;

pub use session::Mount;

use crate::Log;
use std::sync::Arc;

/// When the working set of a snapshot is recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Record {
    /// Never.
    Off,
    /// If none has been saved.
    #[default]
    IfNone,
    /// Always, in the place of an older one.
    Always,
}

/// How a store is mounted.
#[derive(Clone)]
#[non_exhaustive]
pub struct MountOptions {
    /// Only these snapshots. Default: all, also those that appear later.
    pub only: Option<Vec<String>>,
    /// Bytes of decoded chunks that are kept. Default: 32 MiB. The kernel's page cache comes on
    /// top: it keeps what has been read.
    pub cache: usize,
    /// How many reads are served at the same time. Default: 32 of a store whose answers have to be
    /// waited for; of a folder one for each processor, at least 4.
    pub threads: Option<usize>,
    /// Whether other users may read. Default: the one who mounts.
    pub allow_other: bool,
    /// When working sets are recorded.
    pub record: Record,
    /// Whether working sets are replayed: read ahead of the first reader. Default: yes.
    pub replay: bool,
    /// Told of what goes wrong without anybody else noticing, such as a working set that cannot be
    /// saved.
    pub log: Log,
    /// Told of reads that fail: their reader only sees an I/O error. Default: the same as `log`.
    pub failed: Option<Log>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            only: None,
            cache: 32 << 20,
            threads: None,
            allow_other: false,
            record: Record::default(),
            replay: true,
            log: Arc::new(|_| ()),
            failed: None,
        }
    }
}

impl std::fmt::Debug for MountOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountOptions")
            .field("only", &self.only)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

impl MountOptions {
    /// Sets [`MountOptions::only`].
    #[must_use]
    pub fn only(mut self, names: Option<Vec<String>>) -> Self {
        self.only = names;
        self
    }

    /// Sets [`MountOptions::cache`].
    #[must_use]
    pub fn cache(mut self, bytes: usize) -> Self {
        self.cache = bytes;
        self
    }

    /// Sets [`MountOptions::threads`].
    #[must_use]
    pub fn threads(mut self, threads: Option<usize>) -> Self {
        self.threads = threads;
        self
    }

    /// Sets [`MountOptions::allow_other`].
    #[must_use]
    pub fn allow_other(mut self, allow: bool) -> Self {
        self.allow_other = allow;
        self
    }

    /// Sets [`MountOptions::record`].
    #[must_use]
    pub fn record(mut self, record: Record) -> Self {
        self.record = record;
        self
    }

    /// Sets [`MountOptions::replay`].
    #[must_use]
    pub fn replay(mut self, replay: bool) -> Self {
        self.replay = replay;
        self
    }

    /// Sets [`MountOptions::failed`].
    #[must_use]
    pub fn failed(mut self, failed: Log) -> Self {
        self.failed = Some(failed);
        self
    }

    /// Sets [`MountOptions::log`].
    #[must_use]
    pub fn log(mut self, log: Log) -> Self {
        self.log = log;
        self
    }
}
