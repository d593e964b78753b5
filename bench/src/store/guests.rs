//! Linux guests: one that idles, one that is busy, one that writes to a part of its memory.

use super::Stage;
use super::peers::{Optimum, has, program, size};
use crate::ours::Outcome;
use crate::program::command::run;
use crate::program::machines::text;
use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::qemu::Qemu;
use multifd_transport_store::{Store, StoreOptions};
use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

const MIB: f64 = 1_048_576.0;

/// Starts a guest, and waits until it runs its course.
fn guest(stage: &Stage<'_>, mib: u32, append: &str, passes: usize) -> Outcome<Option<Qemu>> {
    let Some(guest) = LinuxGuest::find() else {
        return Ok(None);
    };
    let args = guest.sized(&stage.memory.join("disk"), mib, append);
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let qemu = Qemu::bare(&words);
    loop {
        let said = Said::read(&qemu.serial());
        if said.ticks.len() >= 1000 && said.memory.len() >= passes {
            return Ok(Some(qemu));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Takes a snapshot; returns seconds and memory, of ours alone.
fn take(qemu: &Qemu, out: &str, stage: &Stage<'_>) -> Outcome<(f64, Option<u64>)> {
    let spool = text(&stage.disk)?.to_owned();
    let args = [
        "snapshot",
        "--json",
        "--force",
        "--qmp",
        text(&qemu.monitor)?,
        "--out",
        out,
    ];
    let args = if out.starts_with("store:") {
        let force = args.iter().position(|word| *word == "--force").unwrap_or(0);
        let mut args = args.to_vec();
        args.remove(force);
        [args, vec!["--spool", &spool]].concat()
    } else {
        args.to_vec()
    };
    let (took, _) = run(&args)?;
    Ok((took.seconds, took.memory))
}

/// Further snapshots of a guest that idles.
#[allow(clippy::cast_precision_loss)] // Figures for people.
pub(super) fn idle(stage: &mut Stage<'_>) -> Outcome<()> {
    if !stage.wants("idle guest") {
        return Ok(());
    }
    let Some(qemu) = guest(stage, 1024, "memory=0 dirty=0:0", 0)? else {
        return Ok(());
    };
    let (store, file) = (stage.disk.join("store"), stage.disk.join("vm.mapped"));
    stage.make_store(&store)?;
    let (mut files, mut stores, mut sizes, mut optima) = (vec![], vec![], vec![], vec![]);
    let mut optimum = Optimum::default();
    let (mut last, mut memory) = (0, None);
    for number in 0..=stage.runs.max(3) {
        files.push(take(&qemu, text(&file)?, stage)?.0);
        let added = optimum.add(&file)?;
        let to = format!("store:{}#s{number}", store.display());
        let (seconds, used) = take(&qemu, &to, stage)?;
        stores.push(seconds);
        memory = memory.max(used);
        let now = size(&store)?;
        if number > 0 {
            sizes.push((now - last) as f64 / MIB);
            optima.push(added as f64 / MIB);
        }
        last = now;
    }
    let time = "idle guest, time of a snapshot";
    stage.note((time, "to a file", "s"), files[1..].to_vec(), None)?;
    stage.note(
        (time, "to the store, further ones", "s"),
        stores[1..].to_vec(),
        memory,
    )?;
    let more = "idle guest, each further snapshot";
    stage.note((more, "its new pages, compressed", "MiB"), optima, None)?;
    stage.note((more, "the store grew by", "MiB"), sizes, None)?;
    drop(qemu);
    std::fs::remove_dir_all(&store)?;
    clean(&file);
    Ok(())
}

fn clean(file: &Path) {
    let _ = std::fs::remove_file(file);
    let _ = std::fs::remove_file(file.with_extension("mapped.crc"));
}

/// A guest of 2 GiB that writes to 57 MiB of it.
#[allow(clippy::cast_precision_loss)] // Figures for people.
pub(super) fn dirty(stage: &mut Stage<'_>) -> Outcome<()> {
    if !stage.wants("57 MiB of 2 GiB") {
        return Ok(());
    }
    let Some(qemu) = guest(stage, 2048, "memory=0 dirty=57:57", 0)? else {
        return Ok(());
    };
    let store = stage.disk.join("store");
    stage.make_store(&store)?;
    let address = |name: &str| format!("store:{}#{name}", store.display());
    let file = stage.disk.join("vm.mapped");
    let (mut files, mut seconds, mut memory) = (Vec::new(), Vec::new(), None);
    take(&qemu, &address("s0"), stage)?;
    for number in 1..=stage.runs {
        std::thread::sleep(Duration::from_secs(2));
        let (took, used) = take(&qemu, &address(&format!("s{number}")), stage)?;
        seconds.push(took);
        memory = memory.max(used);
        files.push(take(&qemu, text(&file)?, stage)?.0);
    }
    clean(&file);
    let opened = Store::open(&text(&store)?.parse()?, &StoreOptions::default())?;
    let names = |name: &str| -> Outcome<HashSet<_>> {
        let manifest = opened.manifest(name)?;
        Ok(manifest.chunks().iter().map(|chunk| chunk.name).collect())
    };
    let mut new = Vec::new();
    for number in 1..=stage.runs {
        let before = names(&format!("s{}", number - 1))?;
        let chunks = names(&format!("s{number}"))?.difference(&before).count();
        new.push(chunks as f64 * f64::from(opened.chunk_size()) / MIB);
    }
    let name = "57 MiB of 2 GiB, before compression";
    stage.note((name, "what the guest writes", "MiB"), vec![57.0], None)?;
    stage.note((name, "new chunks", "MiB"), new, None)?;
    // What reading so much memory once takes.
    let mut memory_of_guest = vec![1_u8; 512 << 20];
    let begun = std::time::Instant::now();
    for _ in 0..4 {
        let sum = memory_of_guest.chunks(8).fold(0, |all, word| all | word[0]);
        memory_of_guest[0] = std::hint::black_box(sum);
    }
    let read = vec![begun.elapsed().as_secs_f64()];
    let name = "57 MiB of 2 GiB, time";
    stage.note((name, "reading 2 GiB once, one thread", "s"), read, None)?;
    stage.note((name, "a snapshot to a file", "s"), files, None)?;
    stage.note((name, "a snapshot to the store", "s"), seconds, memory)?;
    drop(qemu);
    Ok(std::fs::remove_dir_all(&store)?)
}

/// Snapshots of a guest that checks 200 MiB of memory, which changes all the time.
#[allow(clippy::cast_precision_loss)] // Figures for people.
pub(super) fn busy(stage: &mut Stage<'_>) -> Outcome<()> {
    if !stage.wants("busy guest") {
        return Ok(());
    }
    let Some(qemu) = guest(stage, 1024, "memory=50 dirty=0:0", 2)? else {
        return Ok(());
    };
    let (store, file) = (stage.disk.join("store"), stage.disk.join("vm.mapped"));
    let (packed, repository) = (stage.disk.join("zst"), stage.disk.join("restic"));
    let restic = [("RESTIC_PASSWORD", "x")];
    let base = ["-q", "-r", text(&repository)?, "--no-cache"].map(String::from);
    let base: Vec<&str> = base.iter().map(String::as_str).collect();
    let with_restic = has("restic");
    if with_restic {
        program("restic", &[&base[..], &["init"]].concat(), &restic)?;
    }
    let mut optimum = Optimum::default();
    let mut files = 0;
    let count = stage.snapshots;
    for number in 0..count {
        take(&qemu, text(&file)?, stage)?;
        optimum.add(&file)?;
        let to = format!("store:{}#s{number}", store.display());
        run(&[
            "store",
            "import",
            "--json",
            text(&file)?,
            &to,
            "--chunk-size",
            &stage.chunk,
        ])?;
        program(
            "zstd",
            &["-1", "-T0", "-q", "-f", text(&file)?, "-o", text(&packed)?],
            &[],
        )?;
        files += std::fs::metadata(&packed)?.len();
        if with_restic {
            program(
                "restic",
                &[&base[..], &["backup", text(&file)?]].concat(),
                &restic,
            )?;
        }
        if number == 0 {
            let name = "busy guest, first snapshot";
            stage.note(
                (name, "zstd -1 of the file", "MiB"),
                vec![files as f64 / MIB],
                None,
            )?;
            let ours = size(&store)? as f64 / MIB;
            stage.note((name, "the store, all of it", "MiB"), vec![ours], None)?;
        }
        std::thread::sleep(Duration::from_secs(stage.apart));
    }
    let name = format!("busy guest, {count} snapshots");
    let mib = |bytes: u64| vec![bytes as f64 / MIB];
    stage.note(
        (&name, "different pages, compressed", "MiB"),
        mib(optimum.bytes),
        None,
    )?;
    stage.note(
        (&name, "the store, all of it", "MiB"),
        mib(size(&store)?),
        None,
    )?;
    stage.note((&name, "zstd -1 of each file", "MiB"), mib(files), None)?;
    if with_restic {
        stage.note((&name, "restic", "MiB"), mib(size(&repository)?), None)?;
        std::fs::remove_dir_all(&repository)?;
    }
    drop(qemu);
    clean(&file);
    std::fs::remove_file(&packed)?;
    Ok(std::fs::remove_dir_all(&store)?)
}
