//! Reading out of a store: any page at any time, and all of it through a mount.

use super::peers::unzstd_rate;
use super::{Stage, Way, raw_fuse};
use crate::image::{self, Numbers};
use crate::ours::Outcome;
use crate::process::MemoryWatch;
use crate::program::command::run;
use crate::program::machines::text;
use multifd_tests::program;
use multifd_transport_store::{ChunkCache, Snapshot, Store, StoreOptions};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// A `multifd mount` that serves; it ends when this is dropped.
pub(super) struct Mounted(Child);

impl Mounted {
    pub(super) fn start(
        store: &str,
        folder: &Path,
        variables: &[(&str, String)],
        more: &[&str],
    ) -> Outcome<Self> {
        std::fs::create_dir_all(folder)?;
        let mut child = Command::new(program::path())
            .args(["mount", store, text(folder)?])
            .args(more)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        if !line.starts_with("mounted") {
            return Err("the store could not be mounted".into());
        }
        Ok(Self(child))
    }

    pub(super) fn watch(&self) -> MemoryWatch {
        MemoryWatch::start(self.0.id(), 0)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed());
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// Reads half of a file each on two threads, as fast as they can. Returns seconds.
fn read_all(file: &Path) -> Outcome<f64> {
    let len = std::fs::metadata(file)?.len();
    let begun = Instant::now();
    std::thread::scope(|scope| -> std::io::Result<()> {
        let read = |from: u64, to: u64| -> std::io::Result<()> {
            let file = File::open(file)?;
            let mut out = vec![0; 1 << 20];
            let mut at = from;
            while at < to {
                let len = (to - at).min(1 << 20);
                file.read_exact_at(&mut out[..usize::try_from(len).unwrap_or(0)], at)?;
                at += len;
            }
            Ok(())
        };
        let half = len / 2 / 4096 * 4096;
        let other = scope.spawn(move || read(half, len));
        read(0, half)?;
        other.join().unwrap_or(Ok(()))
    })?;
    Ok(begun.elapsed().as_secs_f64())
}

pub(super) fn measure(stage: &mut Stage<'_>) -> Outcome<()> {
    if !stage.wants("read, random 4 KiB") && !stage.wants("read, through a mount") {
        return Ok(());
    }
    let bytes = stage.bytes.min(1 << 30);
    let (file, store) = (stage.disk.join("image"), stage.disk.join("store"));
    image::write(&file, bytes, 1)?;
    let to = format!("store:{}#image", store.display());
    run(&[
        "store",
        "import",
        "--json",
        "--raw",
        text(&file)?,
        &to,
        "--chunk-size",
        &stage.chunk,
    ])?;
    let opened = Store::open(&text(&store)?.parse()?, &StoreOptions::default())?;
    let snapshot = Snapshot::open(&opened, "image", &ChunkCache::new(0))?;
    random(stage, &file, &snapshot)?;
    through_mount(stage, &file, &store, &snapshot)?;
    std::fs::remove_dir_all(&store)?;
    Ok(std::fs::remove_file(&file)?)
}

/// Single pages, at places that are the same in every run.
fn random(stage: &mut Stage<'_>, file: &Path, snapshot: &Snapshot) -> Outcome<()> {
    // Pages of chunks that are stored.
    let size = u64::from(snapshot.manifest().head.chunk_size);
    let stored = snapshot.manifest().table(0).enumerate();
    let stored: Vec<u64> = stored
        .filter_map(|(index, chunk)| chunk.map(|_| index as u64 * size))
        .collect();
    let mut numbers = Numbers::new(5);
    let places: Vec<u64> = (0..20_000)
        .map(|_| {
            let chunk = stored[(numbers.next() % stored.len() as u64) as usize];
            chunk + numbers.next() % (size / 4096) * 4096
        })
        .collect();
    let raw = File::open(file)?;
    let mut page = [0; 4096];
    let mut latencies = |read: &mut dyn FnMut(u64, &mut [u8]) -> Outcome<()>| -> Outcome<Vec<f64>> {
        let mut all = Vec::with_capacity(places.len());
        for &at in &places {
            let begun = Instant::now();
            read(at, &mut page)?;
            all.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        all.sort_by(f64::total_cmp);
        Ok(all)
    };
    let direct = latencies(&mut |at, page| Ok(raw.read_exact_at(page, at)?))?;
    let ours = latencies(&mut |at, page| Ok(snapshot.read_at(0, at, page)?))?;
    for (name, part) in [
        ("read, random 4 KiB, p50", 50),
        ("read, random 4 KiB, p99", 99),
    ] {
        for (who, all) in [
            ("pread of the raw file", &direct),
            ("read_at, no cache", &ours),
        ] {
            stage.note((name, who, "us"), vec![all[all.len() * part / 100]], None)?;
        }
    }
    Ok(())
}

/// All of it, beside a file that FUSE serves unchanged.
#[allow(clippy::cast_precision_loss)] // Figures for people.
fn through_mount(
    stage: &mut Stage<'_>,
    file: &Path,
    store: &Path,
    snapshot: &Snapshot,
) -> Outcome<()> {
    let mount = stage.disk.join("mnt");
    let mut memory = None;
    let nonzero = snapshot.manifest().head.sizes.nonzero as f64;
    let raw_mount = stage.disk.join("raw");
    let ways: Vec<Way<'_>> = vec![
        (
            "the raw file by FUSE, 2 readers",
            Box::new(|| {
                let session = raw_fuse::mount(file, &raw_mount)?;
                let seconds = read_all(&raw_mount.join("raw"))?;
                session.umount_and_join()?;
                Ok((seconds, None))
            }),
        ),
        (
            "multifd mount, 2 readers",
            Box::new(|| {
                let more = ["--record", "off", "--only", "image"];
                let mounted = Mounted::start(text(store)?, &mount, &[], &more)?;
                let watch = mounted.watch();
                let seconds = read_all(&mount.join("image/memory"))?;
                memory = Some(watch.end());
                Ok((seconds, memory))
            }),
        ),
    ];
    stage.in_turn("read, through a mount", ways)?;
    let seconds = stage.rows.last().map_or(f64::NAN, |row| row.middle);
    let piece: usize = stage.chunk.parse()?;
    let unzstd = unzstd_rate(file, piece)?;
    let gib = |rate: f64| vec![rate / f64::from(1 << 30)];
    let name = "read, rate of the file";
    let all = gib(std::fs::metadata(file)?.len() as f64 / seconds);
    stage.note((name, "multifd mount, 2 readers", "GiB/s"), all, memory)?;
    let name = "read, rate of what is not zero";
    stage.note(
        (name, "zstd -d of the chunks, 2 threads", "GiB/s"),
        gib(unzstd),
        None,
    )?;
    stage.note(
        (name, "multifd mount, 2 readers", "GiB/s"),
        gib(nonzero / seconds),
        memory,
    )?;
    Ok(())
}
