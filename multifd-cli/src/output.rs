//! Where a snapshot goes: a file, or a store.

use crate::failure::Failure;
use crate::options::{Show, Writing};
use crate::progress::Watch;
use crate::report;
use crate::store_args::{Effort, Key};
use indicatif::HumanBytes;
use multifd_core::CancelHandle;
use multifd_core::packet::Uuid;
use multifd_qemu::file::{Saved, Spooled, Target};
use multifd_qemu::store::put as put_file;
use multifd_qemu::{MappedFile, PhysicalMap, Snapshot};
use multifd_transport_store::{Head, SnapshotAddress, Store, WriteOptions, Writer};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where spooled snapshots go without an option: large files, which may outlive a restart.
const SPOOL: &str = "/var/tmp";

/// Options of what goes into a store.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Storing {
    #[command(flatten)]
    pub(crate) key: Key,
    #[command(flatten)]
    pub(crate) effort: Effort,
    /// With --out store:...: the folder in which memory is collected until its last round; it takes
    /// as much as a snapshot's file [default: TMPDIR, or /var/tmp]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) spool: Option<PathBuf>,
}

/// A snapshot that is in a store.
#[derive(Debug, Serialize)]
#[allow(clippy::struct_field_names)] // The names of the JSON.
pub(crate) struct Stored {
    ok: bool,
    snapshot: String,
    logical_bytes: u64,
    nonzero_bytes: u64,
    stored_bytes: u64,
    new_bytes: u64,
    seconds: f64,
}

impl Stored {
    fn new(address: &SnapshotAddress, head: &Head, took: Duration) -> Self {
        Self {
            ok: true,
            snapshot: address.to_string(),
            logical_bytes: head.sizes.logical,
            nonzero_bytes: head.sizes.nonzero,
            stored_bytes: head.sizes.stored,
            new_bytes: head.sizes.new,
            seconds: took.as_secs_f64(),
        }
    }

    pub(crate) fn line(&self) -> String {
        format!(
            "{}: {} of memory, {} compressed, of which {} are new to the store",
            self.snapshot,
            HumanBytes(self.nonzero_bytes),
            HumanBytes(self.stored_bytes),
            HumanBytes(self.new_bytes)
        )
    }
}

/// Puts a snapshot of `total` bytes of RAM into a store, which `fill` writes.
pub(crate) fn put(
    (store, address): (&Store, &SnapshotAddress),
    options: WriteOptions,
    total: u64,
    show: Show,
    fill: impl FnOnce(&mut Writer) -> Result<(), Failure>,
) -> Result<Stored, Failure> {
    let begun = Instant::now();
    let mut writer = Writer::start(store, &address.name, options)?;
    let watch = Watch::counting("storing", writer.done(), total, show.quiet);
    let written = fill(&mut writer);
    drop(watch);
    written?;
    writer.about(
        "host",
        rustix::system::uname().nodename().to_string_lossy().into(),
    );
    writer.about(
        "writer",
        concat!("multifd ", env!("CARGO_PKG_VERSION")).into(),
    );
    let head = writer.finish()?;
    Ok(Stored::new(address, &head, begun.elapsed()))
}

/// Where a snapshot goes.
pub(crate) struct Output {
    pub(crate) target: Target,
    store: Option<(Store, SnapshotAddress)>,
    level: i32,
    cancel: CancelHandle,
    show: Show,
}

/// A snapshot that has been kept.
pub(crate) struct Kept {
    pub(crate) saved: Saved,
    pub(crate) took: Duration,
    /// What it is called.
    pub(crate) name: String,
    pub(crate) stored: Option<Stored>,
}

impl Output {
    /// Makes sure that the snapshot can be written, before anything is received for it.
    pub(crate) fn create(
        out: &Path,
        (writing, storing): (Writing, &Storing),
        cancel: &CancelHandle,
        show: Show,
    ) -> Result<Self, Failure> {
        let saving = writing.options().cancel(cancel.clone());
        let text = out.to_str().filter(|text| SnapshotAddress::is_one(text));
        let (target, store) = match text {
            None => (Target::create(out, &saving)?, None),
            Some(text) => {
                let address: SnapshotAddress = text.parse()?;
                if writing.force {
                    return Err(Failure::Other(
                        "--force is for files: a snapshot in a store is removed with `multifd store rm`".into(),
                    ));
                }
                let store = storing.key.open_or_create(&address.store, None)?;
                store.check_free(&address.name)?;
                let asked = storing.spool.clone();
                let variable = || std::env::var_os("TMPDIR").map(PathBuf::from);
                let folder = asked.or_else(variable).unwrap_or_else(|| SPOOL.into());
                (Target::spool(&folder, &saving)?, Some((store, address)))
            }
        };
        Ok(Self {
            target,
            store,
            level: storing.effort.store_level,
            cancel: cancel.clone(),
            show,
        })
    }

    /// Has the file written to its disk early, if it is to be there.
    pub(crate) fn write_back_early(&mut self) {
        if self.store.is_none() {
            self.target.write_back_early();
        }
    }

    /// Keeps a snapshot that has been received.
    pub(crate) fn keep(
        self,
        snapshot: &Snapshot,
        layout: Option<&PhysicalMap>,
    ) -> Result<Kept, Failure> {
        let begun = Instant::now();
        if self.store.is_none() {
            let name = self.target.path().display().to_string();
            let saved = self.target.keep(snapshot, layout, &self.cancel)?;
            return Ok(Kept::file(saved, begun, name));
        }
        let Self { target, store, .. } = self;
        let spooled = target.keep_spooled(snapshot, layout)?;
        into_store(&spooled, store, (self.level, self.cancel, self.show), begun)
    }

    /// Keeps a file that QEMU has written.
    pub(crate) fn adopt(
        self,
        vm: &MappedFile,
        uuid: Uuid,
        layout: Option<&PhysicalMap>,
    ) -> Result<Kept, Failure> {
        let begun = Instant::now();
        if self.store.is_none() {
            let name = self.target.path().display().to_string();
            let saved = self.target.adopt(vm, uuid, layout, &self.cancel)?;
            return Ok(Kept::file(saved, begun, name));
        }
        let Self { target, store, .. } = self;
        let spooled = target.adopt_spooled(vm, uuid, layout)?;
        into_store(&spooled, store, (self.level, self.cancel, self.show), begun)
    }
}

impl Kept {
    fn file(saved: Saved, begun: Instant, name: String) -> Self {
        Self {
            saved,
            took: begun.elapsed(),
            name,
            stored: None,
        }
    }
}

fn into_store(
    spooled: &Spooled,
    store: Option<(Store, SnapshotAddress)>,
    (level, cancel, show): (i32, CancelHandle, Show),
    begun: Instant,
) -> Result<Kept, Failure> {
    let Some((store, address)) = store else {
        return Err(Failure::Other("there is no store".into()));
    };
    let options = WriteOptions::default().level(level).cancel(cancel);
    let companion = spooled.companion();
    let file = spooled.open()?;
    let total = file.mapped().ram_bytes();
    let stored = put((&store, &address), options, total, show, |writer| {
        Ok(put_file(writer, &file, companion.as_deref())?)
    })?;
    if !show.quiet && !show.json {
        report::note(&stored.line());
    }
    Ok(Kept {
        saved: spooled.saved(),
        took: begun.elapsed(),
        name: address.to_string(),
        stored: Some(stored),
    })
}
