//! The command line of `multifd store` and `multifd mount`.

use crate::failure::Failure;
use crate::options::{Show, YEAR};
use crate::report;
use crate::size::parse_size;
use clap::{Args, Subcommand, ValueEnum};
use multifd_transport_store::{
    ChunkCache, Protection, Snapshot, SnapshotAddress, Store, StoreAddress, StoreError, StoreKey,
    StoreOptions,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The variable that names a key file.
const KEY_VARIABLE: &str = "MULTIFD_KEY_FILE";

/// What opens an encrypted store.
#[derive(Debug, Clone, Args)]
pub(crate) struct Key {
    /// The secret of an encrypted store: a file with 32 random bytes, or 64 hex digits [default:
    /// the file named by `MULTIFD_KEY_FILE`]
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Seconds for which a request to the storage is tried again, when it is overloaded or cannot
    /// be reached
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    pub(crate) retry_timeout: u64,
}

impl Key {
    /// The file, by option or variable.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        let named = || std::env::var_os(KEY_VARIABLE).map(PathBuf::from);
        self.key_file.clone().or_else(named)
    }

    /// Opens or makes the store that a snapshot is copied to. The variable names the key of the
    /// one that it comes from.
    pub(crate) fn other_store(&self, to: &StoreAddress, chunk: u32) -> Result<Store, Failure> {
        let options = self.with_key(self.key_file.clone())?.chunk_size(chunk);
        match Store::open_or_create(to, &options) {
            Err(StoreError::KeyNeeded { store }) => Err(Failure::Other(format!(
                "{store} is encrypted: name its key (--to-key-file)"
            ))),
            other => Ok(other?),
        }
    }

    fn options(&self) -> Result<StoreOptions, Failure> {
        self.with_key(self.file())
    }

    fn with_key(&self, file: Option<PathBuf>) -> Result<StoreOptions, Failure> {
        let key = file.map(|path| StoreKey::read(&path)).transpose()?;
        Ok(StoreOptions::default()
            .key(key)
            .retry_timeout(Duration::from_secs(self.retry_timeout)))
    }

    /// Opens a store.
    pub(crate) fn open(&self, address: &StoreAddress) -> Result<Store, Failure> {
        Ok(Store::open(address, &self.options()?)?)
    }

    /// Opens a snapshot. A gc leaves it its chunks, also when it is removed meanwhile, if its store
    /// can be written to.
    pub(crate) fn open_snapshot(
        &self,
        address: &SnapshotAddress,
        cache: &Arc<ChunkCache>,
    ) -> Result<Snapshot, Failure> {
        let store = self.open(&address.store)?;
        Ok(match Protection::start(&store, report::log()) {
            Ok(protection) => protection.open(&address.name, cache)?,
            Err(error) => {
                report::note(&format!("multifd: not protected from gc: {error}"));
                Snapshot::open(&store, &address.name, cache)?
            }
        })
    }

    /// Opens a store, or makes one.
    pub(crate) fn open_or_create(
        &self,
        address: &StoreAddress,
        chunk_size: Option<u64>,
    ) -> Result<Store, Failure> {
        let mut options = self.options()?;
        if let Some(bytes) = chunk_size {
            options = options.chunk_size(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        Ok(Store::open_or_create(address, &options)?)
    }
}

/// A store's address; `store:` before it is fine.
pub(crate) fn parse_store(text: &str) -> Result<StoreAddress, StoreError> {
    text.strip_prefix("store:").unwrap_or(text).parse()
}

/// A snapshot's address; `store:` before it may be left out.
pub(crate) fn parse_snapshot(text: &str) -> Result<SnapshotAddress, StoreError> {
    match text.strip_prefix("store:") {
        Some(_) => text.parse(),
        None => format!("store:{text}").parse(),
    }
}

/// A file and its name in a snapshot.
fn parse_attachment(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.into(), file.into()))
        }
        _ => Err("it is NAME=FILE".into()),
    }
}

/// Snapshots in a store: compressed, deduplicated, on a folder or any object store
///
/// A store is a folder, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`;
/// endpoint and credentials come from the usual variables (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`,
/// ...). A snapshot is store:STORE#NAME, wherever a snapshot's file is taken. The first snapshot makes the store.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd snapshot --qmp /run/vm.qmp --out store:/var/lib/vms#monday
  multifd store ls /var/lib/vms
  multifd run store:/var/lib/vms#monday -- qemu-system-x86_64 -M q35 -m 2G -nographic
  multifd store copy store:/var/lib/vms#monday s3://backups/vms")]
pub(crate) struct StoreCommand {
    #[command(subcommand)]
    pub(crate) command: StoreAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreAction {
    Ls(Ls),
    Show(ShowSnapshot),
    Rm(Rm),
    Gc(Gc),
    Stats(Ls),
    Copy(Copy),
    Import(Import),
    Export(Export),
}

impl StoreCommand {
    /// Whether its result is printed as JSON.
    pub(crate) fn json(&self) -> bool {
        let show = match &self.command {
            StoreAction::Ls(args) | StoreAction::Stats(args) => args.show,
            StoreAction::Show(args) => args.show,
            StoreAction::Rm(args) => args.show,
            StoreAction::Gc(args) => args.show,
            StoreAction::Copy(args) => args.show,
            StoreAction::Import(args) => args.show,
            StoreAction::Export(args) => args.show,
        };
        show.json
    }
}

/// List the snapshots of a store, and what each takes
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd store ls /var/lib/vms
  multifd store stats s3://backups/vms --json")]
pub(crate) struct Ls {
    /// The store
    #[arg(value_name = "STORE", value_parser = parse_store)]
    pub(crate) store: StoreAddress,
    #[command(flatten)]
    pub(crate) key: Key,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Show what is in one snapshot
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd store show store:/var/lib/vms#monday")]
pub(crate) struct ShowSnapshot {
    /// The snapshot
    #[arg(value_name = "STORE#NAME", value_parser = parse_snapshot)]
    pub(crate) snapshot: SnapshotAddress,
    #[command(flatten)]
    pub(crate) key: Key,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Remove snapshots; `multifd store gc` then gives their space back
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd store rm store:/var/lib/vms#monday && multifd store gc /var/lib/vms")]
pub(crate) struct Rm {
    /// The snapshots
    #[arg(value_name = "STORE#NAME", value_parser = parse_snapshot, required = true)]
    pub(crate) snapshots: Vec<SnapshotAddress>,
    #[command(flatten)]
    pub(crate) key: Key,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Remove what no snapshot refers to
///
/// It is safe beside writers on other machines: what one that runs may refer to stays until a later
/// gc.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd store gc /var/lib/vms --dry-run")]
pub(crate) struct Gc {
    /// The store
    #[arg(value_name = "STORE", value_parser = parse_store)]
    pub(crate) store: StoreAddress,
    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) key: Key,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// How much work is put into a snapshot.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Effort {
    /// zstd's level for the store
    #[arg(long, value_name = "L", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub(crate) store_level: i32,
}

/// Copy a snapshot to another store: only what that one lacks is read and written
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd store copy store:/var/lib/vms#monday s3://backups/vms
  multifd store copy store:/var/lib/vms#monday /mnt/vault --to-key-file vault.key --name vm1-monday")]
pub(crate) struct Copy {
    /// The snapshot
    #[arg(value_name = "STORE#NAME", value_parser = parse_snapshot)]
    pub(crate) snapshot: SnapshotAddress,
    /// The other store
    #[arg(value_name = "STORE", value_parser = parse_store)]
    pub(crate) to: StoreAddress,
    /// Its name there [default: the same]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) key: Key,
    /// The secret of the other store, if it is encrypted
    #[arg(long, value_name = "FILE")]
    pub(crate) to_key_file: Option<PathBuf>,
    /// Write an encrypted snapshot to a store that is not
    #[arg(long, conflicts_with = "to_key_file")]
    pub(crate) plain: bool,
    #[command(flatten)]
    pub(crate) effort: Effort,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Put a snapshot's file into a store: a mapped-ram file, or a save image of libvirt's
///
/// With --raw it is memory and nothing else, such as Firecracker's memory file; --attach puts other
/// files beside it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd store import vm.mapped store:/var/lib/vms#monday
  multifd store import --raw mem store:/var/lib/vms#fc --attach vmstate=vm.state
      for Firecracker, which then loads vmstate and memory from a mount")]
pub(crate) struct Import {
    /// The file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The snapshot to make
    #[arg(value_name = "STORE#NAME", value_parser = parse_snapshot)]
    pub(crate) snapshot: SnapshotAddress,
    /// Where in the file the migration begins, in bytes [default: at its start; in a save image,
    /// where libvirt has put it]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(crate) offset: Option<u64>,
    /// The file is a raw memory image: one RAM block
    #[arg(long, conflicts_with = "offset")]
    pub(crate) raw: bool,
    /// The RAM block that the raw image is
    #[arg(long, value_name = "NAME", default_value = "memory", requires = "raw")]
    pub(crate) block: String,
    /// Another file to keep beside it, and its name there; may be given again
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_attachment)]
    pub(crate) attach: Vec<(String, PathBuf)>,
    /// Bytes of a chunk, if the store is made now: 4K to 256K [default: 64K]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) chunk_size: Option<u64>,
    #[command(flatten)]
    pub(crate) key: Key,
    #[command(flatten)]
    pub(crate) effort: Effort,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// Write a snapshot out of a store, as the mapped-ram file it was
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd store export store:/var/lib/vms#monday --out vm.mapped
  multifd store export store:/var/lib/vms#monday --file memory --out RAM.bin")]
pub(crate) struct Export {
    /// The snapshot
    #[arg(value_name = "STORE#NAME", value_parser = parse_snapshot)]
    pub(crate) snapshot: SnapshotAddress,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Which of the snapshot's files: vm.mapped with its companion, memory, ram/BLOCK, ...
    #[arg(long, value_name = "PATH", default_value = multifd_qemu::store::MAPPED)]
    pub(crate) file: String,
    /// Replace the file if there is one
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) key: Key,
    #[command(flatten)]
    pub(crate) show: Show,
}

/// When a working set is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Record {
    /// Never
    Off,
    /// If the snapshot has none
    IfNone,
    /// In the place of one that it has
    Always,
}

/// Mount a store: each snapshot is a folder of read-only files that QEMU and others can map
///
/// In it are vm.mapped and what else it was written with, ram/BLOCK, memory (all RAM blocks one
/// after another, as Firecracker maps them) and manifest.json. It runs until it is ended (Ctrl-C,
/// SIGTERM). What a guest reads first is recorded, and read ahead of it the next time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  multifd mount /var/lib/vms /mnt/vms
  multifd mount s3://backups/vms /mnt/vms --only monday --allow-other")]
pub(crate) struct MountArgs {
    /// The store
    #[arg(value_name = "STORE", value_parser = parse_store)]
    pub(crate) store: StoreAddress,
    /// The folder; it must exist
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
    /// Only this snapshot; may be given again
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Let other users read, too
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Memory for decoded chunks; the kernel's page cache comes on top
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = parse_size)]
    pub(crate) cache: u64,
    /// How many reads are served at the same time [default: one for each processor, at least 4; 32
    /// if the store is no folder]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: Option<u16>,
    /// When the order of first reads (the working set) is recorded
    #[arg(long, value_name = "WHEN", default_value = "if-none")]
    pub(crate) record: Record,
    /// Do not read the working set ahead
    #[arg(long)]
    pub(crate) no_replay: bool,
    /// End when no file has been open for so long
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    pub(crate) idle_exit: Option<u64>,
    #[command(flatten)]
    pub(crate) key: Key,
    #[command(flatten)]
    pub(crate) show: Show,
}
