//! What can go wrong with a store.

use multifd_core::BlockError;
use std::io;
use std::path::PathBuf;

/// Why a store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An address that is not one of a store's.
    #[error("{address:?} is not the address of a store: {why}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The storage refused, or could not be reached.
    #[error("{store}: {doing} {object}: {cause}")]
    Storage {
        /// The store.
        store: String,
        /// What was being done.
        doing: &'static str,
        /// The object's path in the store.
        object: String,
        /// The storage's reason.
        cause: Box<object_store::Error>,
    },
    /// An object of the store is missing.
    #[error("{store}: {object} is missing")]
    Missing {
        /// The store.
        store: String,
        /// The object's path in the store.
        object: String,
    },
    /// There is no store at this address.
    #[error("there is no store at {store}; writing a snapshot creates one")]
    NoStore {
        /// The address.
        store: String,
    },
    /// The store was written by a later version.
    #[error("{object} has format version {found}; this program reads version {known}")]
    Version {
        /// The object's path in the store.
        object: String,
        /// Its version.
        found: u32,
        /// The version that can be read.
        known: u32,
    },
    /// An object of the store does not hold what it should.
    #[error("{object} is damaged: {why}")]
    Damaged {
        /// The object's path in the store.
        object: String,
        /// What was expected, and what was found.
        why: String,
    },
    /// A chunk cannot be read. All other chunks still can.
    #[error("chunk {chunk} ({at}) in {pack} at offset {offset:#x} (+{len} bytes): {why}")]
    Chunk {
        /// The chunk's name.
        chunk: String,
        /// Where in the snapshot it is needed first.
        at: String,
        /// The pack's path in the store.
        pack: String,
        /// Offset in the pack, bytes.
        offset: u32,
        /// Length in the pack, bytes.
        len: u32,
        /// What is wrong.
        why: String,
    },
    /// No snapshot of this name.
    #[error("{store} has no snapshot named {name:?}; it has {known}")]
    NoSnapshot {
        /// The store.
        store: String,
        /// The name asked for.
        name: String,
        /// Some names that exist.
        known: String,
    },
    /// A snapshot of this name exists.
    #[error("{store} has a snapshot named {name:?} already: remove it, or choose another name")]
    Exists {
        /// The store.
        store: String,
        /// The name.
        name: String,
    },
    /// A name that a snapshot cannot have.
    #[error("{name:?} cannot be a snapshot's name: {why}")]
    Name {
        /// The name.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The store is encrypted and no key was given.
    #[error("{store} is encrypted: name its key (`--key-file`)")]
    KeyNeeded {
        /// The store.
        store: String,
    },
    /// A key was given and the store is not encrypted.
    #[error("{store} is not encrypted, and a key was given: a store is encrypted from its start")]
    NotEncrypted {
        /// The store.
        store: String,
    },
    /// The key is not the store's.
    #[error("the key given is not the one that {store} was encrypted with")]
    WrongKey {
        /// The store.
        store: String,
    },
    /// A key file that cannot be used.
    #[error("{path}: {why}", path = .path.display())]
    KeyFile {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// More than this program holds or accepts.
    #[error("{what}: {found}; the limit is {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        found: u64,
        /// How much is accepted.
        limit: u64,
    },
    /// The lease that protects a new snapshot's chunks could not be renewed in time.
    #[error(
        "{store}: no contact for {seconds} s, longer than a lease protects new chunks from `gc`; \
         the snapshot was not written: try again"
    )]
    LeaseLost {
        /// The store.
        store: String,
        /// Seconds since the lease was last renewed.
        seconds: u64,
    },
    /// Another garbage collection is running.
    #[error("{store}: another gc is running since {since}; if it died, its lease ends in time")]
    GcRunning {
        /// The store.
        store: String,
        /// When it began.
        since: String,
    },
    /// Memory cannot be read.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The operating system refused.
    #[error("{path}: {doing}: {cause}", path = .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        cause: io::Error,
    },
    /// It was cancelled.
    #[error(transparent)]
    Cancelled(multifd_core::Error),
}
