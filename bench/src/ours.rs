//! Our ends, each in a process of its own as a VMM would have it: the library, with its defaults.

use crate::process::{Usage, anonymous};
use crate::transfer::Took;
use clap::{Args, ValueEnum};
use memmap2::{MmapMut, MmapOptions};
use multifd_compress::{CompressPool, Zlib, Zstd};
use multifd_core::{Method, Plain, Pooled, RamBlock, RamMap, Sender, SenderConfig, SyncScope};
use multifd_qemu::{
    Limits, MappedBlock, MappedFile, MappedWriter, ReceiveOptions, SendOptions, Snapshot, receive, send,
};
use multifd_transport_file::{DirectIo, FileTransport, PlacedBlock, load};
use multifd_transport_socket::{Address, SocketListener, SocketOptions, SocketTransport};
use serde::Serialize;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
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

    /// What a source uses: with fewer channels than processors a pool, as the program `multifd` does.
    fn source(self, channels: u8) -> Outcome<Arc<dyn Method>> {
        let processors = std::thread::available_parallelism()?.get();
        Ok(match self {
            Self::Zstd if usize::from(channels) < processors => {
                let pool = CompressPool::new(processors)?;
                Arc::new(Pooled::new(Zstd::default(), Arc::new(pool)))
            }
            other => other.method(),
        })
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

/// What was used up to now.
struct Meter {
    begun: Instant,
    before: Usage,
    memory: u64,
}

fn own_cpu() -> Usage {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[allow(clippy::cast_precision_loss)] // Seconds for people.
    let cpu = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    Usage { cpu }
}

impl Meter {
    fn start() -> Self {
        Self {
            begun: Instant::now(),
            before: own_cpu(),
            memory: anonymous(std::process::id()),
        }
    }

    fn told(&self, wire_bytes: u64) -> Took {
        Took {
            seconds: self.begun.elapsed().as_secs_f64(),
            cpu: own_cpu().cpu - self.before.cpu,
            wire_bytes,
            memory: anonymous(std::process::id()).saturating_sub(self.memory),
        }
    }
}

pub(crate) fn say(value: &impl Serialize) -> Outcome<()> {
    println!("{}", serde_json::to_string(value)?);
    std::io::stdout().flush()?;
    Ok(())
}

/// A file as memory that other processes see, too, as a guest's is.
#[allow(unsafe_code)]
pub(crate) fn shared(path: &Path, len: Option<u64>) -> Outcome<MmapMut> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    if let Some(len) = len {
        file.set_len(len)?;
    }
    // SAFETY: the file is this run's own, and stays as long as it is mapped.
    Ok(unsafe { MmapOptions::new().map_mut(&file) }?)
}

pub(crate) fn run_send(role: &SendRole) -> Outcome<()> {
    let memory = RamBlock::from_mmap("pc.ram", shared(&role.memory, None)?, 4096)?;
    let mut ram = RamMap::new();
    ram.add(memory)?;
    let snapshot = Snapshot::of_ram(ram);
    let method = role.compression.source(role.channels)?;
    let transport = SocketTransport::new(role.to.clone(), SocketOptions::default());
    let meter = Meter::start();
    let mut main = transport.connect()?;
    main.abort_on_close(true)?;
    let options = SendOptions {
        sender: SenderConfig {
            channels: role.channels,
            ..SenderConfig::default()
        },
        sync: None,
        zero_pages: None,
        on_start: None,
    };
    let sent = send(&snapshot, &mut main, method.as_ref(), &transport, options)?;
    main.abort_on_close(false)?;
    main.end_writing()?;
    main.wait_closed()?;
    say(&meter.told(sent.stats.total().wire_bytes))
}

fn place(block: &MappedBlock) -> PlacedBlock {
    PlacedBlock {
        name: block.name.clone(),
        layout: block.layout,
    }
}

/// A snapshot into a file, or out of one.
#[derive(Debug, Args)]
pub(crate) struct FileRole {
    /// The file that is the guest's RAM
    #[arg(long)]
    pub(crate) memory: PathBuf,
    /// The mapped-ram file
    #[arg(long)]
    pub(crate) file: PathBuf,
    #[arg(long)]
    pub(crate) channels: u8,
    /// Past the page cache
    #[arg(long)]
    pub(crate) direct: bool,
}

impl FileRole {
    fn direct(&self) -> DirectIo {
        if self.direct { DirectIo::On } else { DirectIo::Off }
    }
}

pub(crate) fn run_save(role: &FileRole) -> Outcome<()> {
    let mut ram = RamMap::new();
    ram.add(RamBlock::from_mmap("pc.ram", shared(&role.memory, None)?, 4096)?)?;
    let snapshot = Snapshot::of_ram(ram);
    let meter = Meter::start();
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&role.file)?;
    let (writer, mapped) = MappedWriter::start(
        &file,
        0,
        &snapshot.configuration,
        snapshot.ram_section,
        &snapshot.blocks(),
    )?;
    let transport = FileTransport::new(
        file.try_clone()?,
        mapped.iter().map(place).collect(),
        role.direct(),
    )?;
    let config = SenderConfig {
        channels: role.channels,
        ..SenderConfig::default()
    };
    let mut sender = Sender::start(snapshot.ram.clone(), &Plain, &transport, &config)?;
    for (index, block) in snapshot.ram.blocks().iter().enumerate() {
        sender.queue_range(index, 0, block.len())?;
    }
    sender.sync(SyncScope::Local)?;
    sender.finish()?;
    let written = transport.finish()?;
    writer.finish(snapshot.switchover_start, &snapshot.tail)?;
    say(&meter.told(written.bytes))
}

pub(crate) fn run_load(role: &FileRole) -> Outcome<()> {
    let len = std::fs::metadata(&role.memory)?.len();
    let mut memory = Some(RamBlock::from_mmap(
        "pc.ram",
        shared(&role.memory, Some(len))?,
        4096,
    )?);
    let meter = Meter::start();
    let file = File::open(&role.file)?;
    let mapped = MappedFile::read(&file, 0, &Limits::default(), false)?;
    let mut ram = RamMap::new();
    for block in &mapped.blocks {
        ram.add(match memory.take_if(|_| block.name == "pc.ram") {
            Some(memory) => memory.with_known_zeros(),
            None => RamBlock::anonymous(&block.name, block.layout.used_length(), 4096)?,
        })?;
    }
    let placed: Vec<_> = mapped.blocks.iter().map(place).collect();
    let loaded = load(&file, &placed, &ram, role.channels.into(), role.direct())?;
    say(&meter.told(loaded.pages * 4096))
}

pub(crate) fn run_recv(role: &RecvRole) -> Outcome<()> {
    let mut listener = SocketListener::bind(&role.listen, SocketOptions::default())?;
    let (path, prealloc) = (role.memory.clone(), role.prealloc);
    // The memory of a VM is there before anything comes: so it is here, for one of this size.
    let len = std::fs::metadata(&path)?.len();
    let mut ready = Some(shared(&path, Some(len))?);
    if prealloc && let Some(map) = &mut ready {
        for page in map.chunks_mut(4096) {
            page[0] = 0;
        }
    }
    say(&listener.address()?.to_string())?;
    let mut main = listener.accept_main()?;
    let meter = Meter::start();
    main.abort_on_close(true)?;
    let options = ReceiveOptions {
        methods: vec![
            Compression::None.method(),
            Compression::Zlib.method(),
            Compression::Zstd.method(),
        ],
        memory: Some(Box::new(move |info, page_size| {
            match ready.take_if(|_| info.name == "pc.ram") {
                Some(map) => RamBlock::from_mmap(&info.name, map, page_size),
                None => RamBlock::anonymous(&info.name, info.used_length, page_size),
            }
        })),
        ..ReceiveOptions::default()
    };
    let received = receive(&mut main, &mut listener, options)?;
    let told = meter.told(received.stats.total().wire_bytes);
    main.abort_on_close(false)?;
    drop(main);
    say(&told)
}
