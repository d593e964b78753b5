//! Our ends, each in a process of its own as a VMM would have it: the library, with its defaults.

use crate::mapped::beside;
use clap::{Args, ValueEnum};
use memmap2::{MmapMut, MmapOptions};
use multifd_compress::{CompressPool, Zlib, Zstd};
use multifd_core::{
    Encode, Method, Plain, RamBlock, RamMap, ReceiverConfig, SenderConfig, ThreadRole, Workers,
};
use multifd_qemu::{IncomingMigration, OutgoingMigration, ReceiveOptions, SendOptions, Snapshot};
use multifd_residency::preallocate;
use multifd_transport_socket::{
    Address, SocketListener, SocketOptions, SocketTransport, batch_scheduling,
};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    None,
    Zlib,
    Zstd,
}

impl Compression {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    pub(crate) fn method(self) -> Arc<dyn Method> {
        match self {
            Self::None => Arc::new(Plain),
            Self::Zlib => Arc::new(Zlib::default()),
            Self::Zstd => Arc::new(Zstd::default()),
        }
    }

    /// What a source uses: with fewer channels than processors a pool, as the program `multifd`
    /// does.
    fn source(self, channels: u8) -> Outcome<Encoder> {
        let processors = std::thread::available_parallelism()?.get();
        Ok(match self {
            Self::Zstd if usize::from(channels) < processors => {
                Encoder::Pool(Zstd::default(), Arc::new(CompressPool::new(processors)?))
            }
            other => Encoder::Channels(other.method()),
        })
    }
}

/// A method, and where it runs.
enum Encoder {
    Channels(Arc<dyn Method>),
    Pool(Zstd, Arc<dyn Workers>),
}

impl Encoder {
    fn encode(&self) -> Encode<'_> {
        match self {
            Self::Channels(method) => Encode::on_channels(method.as_ref()),
            Self::Pool(zstd, pool) => Encode::on_pool(zstd, Arc::clone(pool)),
        }
    }
}

/// A source.
#[derive(Debug, Args)]
pub(crate) struct SendRole {
    /// Where to send
    #[arg(long)]
    pub(crate) to: Address,
    /// The file that is the guest's RAM
    #[arg(long)]
    pub(crate) memory: PathBuf,
    #[arg(long)]
    pub(crate) channels: u8,
    #[arg(long)]
    pub(crate) compression: Compression,
    /// Take what a QEMU has beside its RAM from this mapped-ram file: the destination is one
    #[arg(long)]
    pub(crate) tail: Option<PathBuf>,
}

/// A destination.
#[derive(Debug, Args)]
pub(crate) struct RecvRole {
    /// Where to listen
    #[arg(long)]
    pub(crate) listen: Address,
    /// The file that becomes the guest's RAM
    #[arg(long)]
    pub(crate) memory: PathBuf,
    /// Give the file its pages before
    #[arg(long)]
    pub(crate) prealloc: bool,
}

/// What one of our ends says of itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Processor seconds.
    pub(crate) cpu: f64,
    pub(crate) wire_bytes: u64,
}

/// What was used up to now.
pub(crate) struct Meter {
    cpu: f64,
}

fn own_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[allow(clippy::cast_precision_loss)] // Seconds for people.
    let cpu = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    cpu
}

impl Meter {
    pub(crate) fn start() -> Self {
        Self { cpu: own_cpu() }
    }

    /// Starts when the parent says so: all that comes before is not measured.
    pub(crate) fn when_told() -> Outcome<Self> {
        say(&"ready")?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        if line != "go\n" {
            return Err("the bench has gone".into());
        }
        Ok(Self::start())
    }

    pub(crate) fn told(&self, wire_bytes: u64) -> Told {
        Told {
            cpu: own_cpu() - self.cpu,
            wire_bytes,
        }
    }
}

pub(crate) fn say(value: &impl Serialize) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(value)?)?;
    out.flush()?;
    Ok(())
}

/// A file in memory, new or not, of a length if that is given.
fn file_of(path: &Path, len: Option<u64>) -> Outcome<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    if let Some(len) = len {
        file.set_len(len)?;
    }
    Ok(file)
}

/// Such a file as plain memory.
#[allow(unsafe_code)]
pub(crate) fn shared(path: &Path, len: Option<u64>) -> Outcome<MmapMut> {
    // SAFETY: the file is this run's own, and stays as long as it is mapped.
    Ok(unsafe { MmapOptions::new().map_mut(&file_of(path, len)?) }?)
}

/// Such a file as a guest's RAM.
pub(crate) fn guest(path: &Path, len: Option<u64>) -> Outcome<RamBlock> {
    Ok(RamBlock::shared("pc.ram", &file_of(path, len)?, 4096)?)
}

pub(crate) fn run_send(role: &SendRole) -> Outcome<()> {
    let memory = guest(&role.memory, None)?;
    let snapshot = if let Some(file) = &role.tail {
        beside(file, memory)?
    } else {
        let mut ram = RamMap::new();
        ram.add(memory)?;
        Snapshot::of_ram(ram)
    };
    let method = role.compression.source(role.channels)?;
    let transport = SocketTransport::new(role.to.clone(), SocketOptions::default());
    let meter = Meter::when_told()?;
    let options = SendOptions::default().sender(SenderConfig::default().channels(role.channels));
    let cancel = options.sender.common.cancel.clone();
    let mut migration = OutgoingMigration::connect(&transport, &cancel)?;
    let sent = migration.send(&snapshot, method.encode(), &transport, options)?;
    migration.finish(Duration::from_secs(60))?;
    say(&meter.told(sent.stats.total().wire_bytes))
}

pub(crate) fn run_recv(role: &RecvRole) -> Outcome<()> {
    let mut listener = SocketListener::bind(&role.listen, SocketOptions::default())?;
    let (path, prealloc) = (role.memory.clone(), role.prealloc);
    // The memory of a VM is there before anything comes: so it is here, for one of this size.
    let len = std::fs::metadata(&path)?.len();
    let memory = guest(&path, Some(len))?;
    if prealloc {
        preallocate(&memory, true)?;
    }
    let mut ready = Some(memory);
    say(&listener.address()?.to_string())?;
    let engine = ReceiverConfig::default()
        .methods(vec![
            Compression::None.method(),
            Compression::Zlib.method(),
            Compression::Zstd.method(),
        ])
        .thread_start(Some(Arc::new(|role| {
            if let ThreadRole::Receive { .. } = role {
                batch_scheduling();
            }
        })));
    let cancel = engine.common.cancel.clone();
    let mut migration = IncomingMigration::wait(&mut listener, &cancel)?;
    let meter = Meter::start();
    let options = ReceiveOptions::default()
        .engine(engine)
        .memory(Some(Box::new(move |info, page_size| {
            match ready.take_if(|_| info.name == "pc.ram") {
                Some(memory) => Ok(memory),
                None => RamBlock::anonymous(&info.name, info.used_length, page_size),
            }
        })));
    let received = migration.receive(&mut listener, options)?;
    let told = meter.told(received.stats.total().wire_bytes);
    migration.accept()?;
    say(&told)
}
