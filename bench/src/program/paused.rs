//! A paused guest: snapshots of it, restores, and transfers between programs and QEMUs.

use super::command::{Running, Took, run, start};
use super::machines::{load, paused, save, text, unlimited, waiting};
use super::{Row, Stage, Way, in_turn};
use crate::image;
use crate::ours::Outcome;
use crate::process::cpu;
use multifd_tests::qemu::Qemu;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

pub(crate) fn measure(stage: &Stage, out: &mut dyn Write) -> Outcome<Vec<Row>> {
    let ram = stage.memory.join("ram");
    image::write(&ram, stage.bytes, 1)?;
    let mut rows = Vec::new();
    for (place, folder) in [("tmpfs", &stage.memory), ("disk", &stage.disk)] {
        let file = folder.join("vm.mapped");
        rows.extend(snapshots(stage, place, &ram, &file, out)?);
        rows.extend(restores(stage, place, &ram, &file, out)?);
    }
    rows.extend(transfers(stage, &ram, out)?);
    std::fs::remove_file(&ram)?;
    Ok(rows)
}

fn remove(file: &Path) {
    let _ = std::fs::remove_file(file);
    let _ = std::fs::remove_file(file.with_extension("mapped.crc"));
}

/// What QEMU does by itself, with what is synced afterwards.
fn own_save(ram: &Path, bytes: u64, file: &Path) -> Outcome<Took> {
    remove(file);
    let mut qemu = paused(ram, bytes);
    let (begun, before) = (Instant::now(), cpu(qemu.pid()));
    save(&mut qemu, file);
    File::open(file)?.sync_all()?;
    Ok(Took {
        seconds: begun.elapsed().as_secs_f64(),
        cpu: cpu(qemu.pid()) - before,
        ..Took::default()
    })
}

fn our_save(ram: &Path, bytes: u64, file: &Path, more: &[&str]) -> Outcome<Took> {
    remove(file);
    let qemu = paused(ram, bytes);
    let before = cpu(qemu.pid());
    let args = [
        "snapshot",
        "--json",
        "--qmp",
        text(&qemu.monitor)?,
        "--out",
        text(file)?,
    ];
    let (took, _) = run(&[&args, more].concat())?;
    Ok(Took {
        cpu: took.cpu + cpu(qemu.pid()) - before,
        ..took
    })
}

fn snapshots(
    stage: &Stage,
    place: &str,
    ram: &Path,
    file: &Path,
    out: &mut dyn Write,
) -> Outcome<Vec<Row>> {
    let bytes = stage.bytes;
    let mut ways: Vec<Way<'_>> = vec![(
        "QEMU, then fsync".into(),
        Box::new(|| own_save(ram, bytes, file)),
    )];
    for more in [
        ["--via", "file"].as_slice(),
        &["--via", "file", "--no-digest"],
        &["--via", "socket"],
        &["--via", "socket", "--no-digest"],
        &["--compression", "zstd"],
    ] {
        let run = move || our_save(ram, bytes, file, more);
        ways.push((format!("multifd {}", more.join(" ")), Box::new(run)));
    }
    in_turn(&format!("snapshot, paused, {place}"), stage, ways, out)
}

fn own_load(bytes: u64, file: &Path) -> Took {
    let mut qemu = waiting(bytes);
    let (begun, before) = (Instant::now(), cpu(qemu.pid()));
    load(&mut qemu, file);
    Took {
        seconds: begun.elapsed().as_secs_f64(),
        cpu: cpu(qemu.pid()) - before,
        ..Took::default()
    }
}

fn our_load(bytes: u64, file: &Path, more: &[&str]) -> Outcome<Took> {
    let qemu = waiting(bytes);
    let before = cpu(qemu.pid());
    let args = [
        "restore",
        "--json",
        "--qmp",
        text(&qemu.monitor)?,
        text(file)?,
    ];
    let (took, _) = run(&[&args, more].concat())?;
    Ok(Took {
        cpu: took.cpu + cpu(qemu.pid()) - before,
        ..took
    })
}

fn restores(
    stage: &Stage,
    place: &str,
    ram: &Path,
    file: &Path,
    out: &mut dyn Write,
) -> Outcome<Vec<Row>> {
    let case = format!("restore, {place}, page cache warm");
    if !stage.wants(&case) {
        return Ok(Vec::new());
    }
    our_save(ram, stage.bytes, file, &[])?;
    let bytes = stage.bytes;
    let mut ways: Vec<Way<'_>> = vec![(
        "QEMU, 4 threads".into(),
        Box::new(|| Ok(own_load(bytes, file))),
    )];
    for more in [
        ["--via", "file"].as_slice(),
        &["--via", "file", "--verify"],
        &["--via", "socket"],
    ] {
        let run = move || our_load(bytes, file, more);
        ways.push((format!("multifd {}", more.join(" ")), Box::new(run)));
    }
    let rows = in_turn(&case, stage, ways, out);
    remove(file);
    rows
}

/// A program that listens, and where it does.
fn listening(args: &[&str]) -> Outcome<(Running, String)> {
    let mut running = start(args)?;
    let mut line = String::new();
    BufReader::new(running.said()?).read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on ");
    let address = address
        .ok_or_else(|| format!("it says {line:?}"))?
        .to_owned();
    Ok((running, address))
}

/// From one QEMU to another over TCP: what stands beside a program at either end.
fn own_transfer(ram: &Path, bytes: u64) -> Took {
    let size = (bytes >> 20).to_string();
    let object = format!(
        "memory-backend-file,id=pc.ram,size={bytes},share=on,mem-path={}",
        ram.display()
    );
    let (mut source, mut target) = Qemu::bare_pair(
        &[
            "-S",
            "-M",
            "pc,memory-backend=pc.ram",
            "-m",
            &size,
            "-object",
            &object,
        ],
        &["-S", "-M", "pc", "-m", &size, "-incoming", "defer"],
    );
    source.multifd(4, "none", "multifd");
    target.multifd(4, "none", "multifd");
    unlimited(&mut source);
    let address = target.listen("tcp:127.0.0.1:0");
    let before = cpu(source.pid()) + cpu(target.pid());
    let begun = Instant::now();
    source.migrate(&address);
    target.wait_completed();
    Took {
        seconds: begun.elapsed().as_secs_f64(),
        cpu: cpu(source.pid()) + cpu(target.pid()) - before,
        ..Took::default()
    }
}

/// From a QEMU into a file by `multifd recv`.
fn into_file(ram: &Path, bytes: u64, file: &Path) -> Outcome<Took> {
    remove(file);
    let mut source = paused(ram, bytes);
    source.multifd(4, "none", "multifd");
    unlimited(&mut source);
    let args = [
        "recv",
        "--json",
        "--listen",
        "tcp:127.0.0.1:0",
        "--channels",
        "4",
        "--out",
        text(file)?,
    ];
    let (running, address) = listening(&args)?;
    let before = cpu(source.pid());
    let begun = Instant::now();
    source.migrate(&address);
    let (took, _) = running.end()?;
    Ok(Took {
        seconds: begun.elapsed().as_secs_f64(),
        cpu: took.cpu + cpu(source.pid()) - before,
        ..took
    })
}

/// From a file into a QEMU by `multifd send`.
fn out_of_file(bytes: u64, file: &Path) -> Outcome<Took> {
    let mut target = waiting(bytes);
    target.multifd(4, "none", "multifd");
    let address = target.listen("tcp:127.0.0.1:0");
    let before = cpu(target.pid());
    let args = [
        "send",
        "--json",
        text(file)?,
        "--to",
        &address,
        "--channels",
        "4",
    ];
    let (took, _) = run(&args)?;
    target.wait_completed();
    Ok(Took {
        cpu: took.cpu + cpu(target.pid()) - before,
        ..took
    })
}

fn transfers(stage: &Stage, ram: &Path, out: &mut dyn Write) -> Outcome<Vec<Row>> {
    let (bytes, file): (u64, PathBuf) = (stage.bytes, stage.memory.join("vm.mapped"));
    if !stage.wants("transfer, TCP, tmpfs") {
        return Ok(Vec::new());
    }
    our_save(ram, bytes, &stage.memory.join("sent.mapped"), &[])?;
    let sent = stage.memory.join("sent.mapped");
    let ways: Vec<Way<'_>> = vec![
        (
            "QEMU to QEMU".into(),
            Box::new(|| Ok(own_transfer(ram, bytes))),
        ),
        (
            "QEMU to multifd recv".into(),
            Box::new(|| into_file(ram, bytes, &file)),
        ),
        (
            "multifd send to QEMU".into(),
            Box::new(|| out_of_file(bytes, &sent)),
        ),
    ];
    let rows = in_turn("transfer, TCP, tmpfs", stage, ways, out);
    remove(&file);
    remove(&sent);
    rows
}
