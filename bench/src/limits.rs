//! What this machine can do at all, on the same data: the loopback, its memory, a codec, a file.

use crate::fresh::touch;
use crate::ours::{Compression, Outcome, guest, shared};
use crate::results::Limit;
use crate::transfer::Stage;
use multifd_core::{
    ChannelError, Message, RamMap, SendChannel, Sender, SenderConfig, SyncScope, Transport,
    Unblock, WriteFlags,
};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn rate(bytes: u64, begun: Instant) -> f64 {
    per_second(bytes, begun.elapsed())
}

#[allow(clippy::cast_precision_loss)] // Figures for people.
fn per_second(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64()
}

/// Measures all limits, and says each as it is known.
pub(crate) fn measure(
    stage: &Stage,
    (runs, quick, only): (u16, bool, &str),
    show: &mut dyn FnMut(&Limit) -> Outcome<()>,
) -> Outcome<Vec<Limit>> {
    let mut limits = Vec::new();
    let mut add = |name: String, measure: &dyn Fn() -> Outcome<f64>| -> Outcome<()> {
        if !name.contains(only) {
            return Ok(());
        }
        let runs = (0..runs).map(|_| measure()).collect::<Outcome<Vec<_>>>()?;
        let limit = Limit { name, runs };
        show(&limit)?;
        limits.push(limit);
        Ok(())
    };
    if iperf3_is_here() {
        let streams: &[u8] = if quick {
            &[1, 2, 4]
        } else {
            &[1, 2, 4, 8, 16, 64]
        };
        for &streams in streams {
            add(format!("limit: iperf3 x{streams}"), &|| {
                iperf3(streams, if quick { 1 } else { 3 })
            })?;
        }
    }
    for threads in [1, 2] {
        add(format!("limit: memcpy x{threads}"), &|| {
            memcpy(stage, threads)
        })?;
        add(format!("limit: new tmpfs pages x{threads}"), &|| {
            let took = touch(&stage.folder.join("new"), stage.bytes, threads)?;
            Ok(per_second(stage.bytes, took))
        })?;
    }
    let codecs: &[Compression] = if quick {
        &[Compression::None, Compression::Zstd]
    } else {
        &[Compression::None, Compression::Zstd, Compression::Zlib]
    };
    for &codec in codecs {
        for channels in [1, 2] {
            add(
                format!("limit: {} without transport x{channels}", codec.name()),
                &|| prepare_only(stage, codec, channels),
            )?;
        }
    }
    let places = [("tmpfs", &stage.folder), ("disk", &stage.disk)];
    for (place, folder) in &places[..if quick { 1 } else { 2 }] {
        let file = folder.join("sequential");
        let on_disk = *place == "disk";
        add(format!("limit: file write, {place}"), &|| {
            write(stage, &file)
        })?;
        if !file.exists() {
            write(stage, &file)?;
        }
        add(format!("limit: file read, {place}"), &|| {
            read(&file, on_disk)
        })?;
        std::fs::remove_file(&file)?;
    }
    Ok(limits)
}

pub(crate) fn iperf3_is_here() -> bool {
    let version = Command::new("iperf3")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

/// What `iperf3` moves over loopback.
fn iperf3(streams: u8, seconds: u8) -> Outcome<f64> {
    let port = TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port()
        .to_string();
    let mut server = Command::new("iperf3")
        .args(["-s", "-1", "--forceflush", "-B", "127.0.0.1", "-p", &port])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(server.stdout.take().ok_or("iperf3 without an output")?);
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        if said.read_line(&mut line)? == 0 {
            return Err("iperf3 does not listen".into());
        }
    }
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let client = Command::new("iperf3")
        .args(["-c", "127.0.0.1", "-J", "-p", &port])
        .args(["-P", &streams.to_string(), "-t", &seconds.to_string()])
        .stdin(Stdio::null())
        .output();
    let _ = server.kill();
    server.wait()?;
    let said: serde_json::Value = serde_json::from_slice(&client?.stdout)?;
    let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.ok_or_else(|| format!("iperf3: {said}"))? / 8.0)
}

/// Splits both evenly among threads, which then copy.
fn memcpy(stage: &Stage, threads: usize) -> Outcome<f64> {
    let image = shared(&stage.image, None)?;
    let mut room = vec![1_u8; image.len()];
    // Both are there before: a fault is no copying.
    let touched = image.chunks(4096).fold(0, |sum, page| sum ^ page[0]);
    std::hint::black_box(touched);
    let part = image.len().div_ceil(threads);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (from, to) in image.chunks(part).zip(room.chunks_mut(part)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
    Ok(rate(stage.bytes, begun))
}

/// Channels that take all and keep nothing.
struct Nowhere;

impl Transport for Nowhere {
    fn open(&self, _: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(Self))
    }
}

impl SendChannel for Nowhere {
    fn send(&mut self, _: &Message<'_>, _: WriteFlags) -> Result<(), ChannelError> {
        Ok(())
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Self))
    }
}

impl Unblock for Nowhere {
    fn unblock(&self) {}
}

/// The engine and a codec alone.
fn prepare_only(stage: &Stage, codec: Compression, channels: u8) -> Outcome<f64> {
    let mut ram = RamMap::new();
    ram.add(guest(&stage.image, None)?)?;
    let config = SenderConfig::default().channels(channels);
    let begun = Instant::now();
    let mut sender = Sender::start(ram, codec.method().as_ref(), &Nowhere, &config)?;
    sender.queue_range(0, 0, stage.bytes)?;
    sender.sync(SyncScope::Local)?;
    sender.finish()?;
    Ok(rate(stage.bytes, begun))
}

/// Writes the image from one end to the other, as far as the page cache.
fn write(stage: &Stage, path: &Path) -> Outcome<f64> {
    let image = shared(&stage.image, None)?;
    let _ = std::fs::remove_file(path);
    let begun = Instant::now();
    let mut file = File::create(path)?;
    for part in image.chunks(1 << 20) {
        file.write_all(part)?;
    }
    let rate = rate(stage.bytes, begun);
    file.sync_all()?;
    Ok(rate)
}

fn read(path: &Path, on_disk: bool) -> Outcome<f64> {
    let mut file = File::open(path)?;
    if on_disk {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    let (mut room, mut bytes) = (vec![0; 1 << 20], 0);
    let begun = Instant::now();
    loop {
        match file.read(&mut room)? {
            0 => return Ok(rate(bytes, begun)),
            n => bytes += n as u64,
        }
    }
}
