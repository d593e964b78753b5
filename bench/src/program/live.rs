//! A Linux guest that runs: snapshots of it, and how long it stands still.

use super::command::{Took, run};
use super::machines::{save, text};
use super::{Row, Stage, Way, in_turn};
use crate::ours::Outcome;
use crate::process::cpu;
use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::qemu::Qemu;
use serde_json::json;
use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// MiB of RAM of the guest, and of the memory that it checks again and again.
const RAM: u32 = 1024;
const CHECKED: u32 = 200;

pub(crate) fn measure(stage: &Stage, out: &mut dyn Write) -> Outcome<Vec<Row>> {
    let cases = ["tmpfs", "disk", "background"].map(|what| format!("snapshot, live, {what}"));
    if !cases.iter().any(|case| stage.wants(case)) {
        return Ok(Vec::new());
    }
    let guest = LinuxGuest::find().ok_or("there is no Linux guest: .ci/install builds it")?;
    let mut rows = Vec::new();
    let args = guest.sized(
        &stage.memory.join("disk"),
        RAM,
        &format!("memory={CHECKED} dirty=16:50"),
    );
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let source = RefCell::new(Qemu::bare(&words));
    settle(&mut source.borrow_mut(), 3);
    for (place, folder) in [("tmpfs", &stage.memory), ("disk", &stage.disk)] {
        let file = folder.join("live.mapped");
        let mut ways: Vec<Way<'_>> = vec![(
            "QEMU, then fsync".into(),
            Box::new(|| own(&mut source.borrow_mut(), &file)),
        )];
        for more in [
            ["--via", "file"].as_slice(),
            &["--via", "file", "--no-digest"],
            &["--via", "socket"],
            &["--compression", "zstd"],
            &["--background"],
        ] {
            let (source, file) = (&source, &file);
            let run = move || ours(&mut source.borrow_mut(), file, more);
            ways.push((format!("multifd {}", more.join(" ")), Box::new(run)));
        }
        rows.extend(in_turn(
            &format!("snapshot, live, {place}"),
            stage,
            ways,
            out,
        )?);
    }
    Ok(rows)
}

/// Waits until the guest has passed over its memory so many times more.
fn settle(qemu: &mut Qemu, passes: usize) -> Said {
    let before = Said::read(&qemu.serial()).memory.len();
    loop {
        let said = Said::read(&qemu.serial());
        if said.memory.len() >= before + passes {
            return said;
        }
        // How often it is looked at: the guest needs the processors.
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn remove(file: &Path) {
    let _ = std::fs::remove_file(file);
    let _ = std::fs::remove_file(file.with_extension("mapped.crc"));
}

/// The longest time between two ticks since a tick.
fn gap(qemu: &mut Qemu, tick: u64) -> f64 {
    settle(qemu, 1).longest_gap_since(tick)
}

fn last_tick(qemu: &mut Qemu) -> u64 {
    let said = settle(qemu, 1);
    said.ticks.last().map_or(0, |tick| tick.0)
}

/// By QEMU itself, let run again by a client that waits for the event.
fn own(qemu: &mut Qemu, file: &Path) -> Outcome<Took> {
    remove(file);
    let tick = last_tick(qemu);
    let (begun, before) = (Instant::now(), cpu(qemu.pid()));
    save(qemu, file);
    qemu.wait_settled();
    qemu.execute("cont", &json!({}));
    File::open(file)?.sync_all()?;
    let took = Took {
        seconds: begun.elapsed().as_secs_f64(),
        cpu: cpu(qemu.pid()) - before,
        ..Took::default()
    };
    let pause = qemu.last_pause();
    let off = |name: &str| json!({ "capability": name, "state": false });
    let list = json!({ "capabilities": [off("multifd"), off("mapped-ram")] });
    qemu.execute("migrate-set-capabilities", &list);
    Ok(Took {
        pause,
        gap: Some(gap(qemu, tick)),
        ..took
    })
}

fn ours(qemu: &mut Qemu, file: &Path, more: &[&str]) -> Outcome<Took> {
    remove(file);
    let tick = last_tick(qemu);
    let before = cpu(qemu.pid());
    let monitor = qemu.monitor.clone();
    let args = [
        "snapshot",
        "--json",
        "--qmp",
        text(&monitor)?,
        "--out",
        text(file)?,
    ];
    let (took, result) = run(&[&args, more].concat())?;
    Ok(Took {
        cpu: took.cpu + cpu(qemu.pid()) - before,
        pause: result["guest"]["pause_seconds"].as_f64(),
        gap: Some(gap(qemu, tick)),
        ..took
    })
}
