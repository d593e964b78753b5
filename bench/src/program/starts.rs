//! How long it takes until a guest says something new, from the command on; and what clones share.

use super::command::{Took, run, start};
use super::machines::{load, text};
use super::{Row, Stage, Way, in_turn};
use crate::ours::Outcome;
use crate::process::cpu;
use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::program;
use multifd_tests::qemu::Qemu;
use serde::Serialize;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often a serial port is looked at.
const LOOK: Duration = Duration::from_micros(500);
const BOOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/guest/boot.bin");

pub(crate) fn machine(gib: u64) -> Vec<String> {
    let drive = format!("if=floppy,format=raw,readonly=on,file={BOOT}");
    [
        "-M",
        "pc",
        "-m",
        &format!("{gib}G"),
        "-accel",
        "tcg",
        "-drive",
        &drive,
    ]
    .map(String::from)
    .to_vec()
}

pub(crate) fn bare(args: &[String], more: &[String]) -> Qemu {
    Qemu::bare(
        &args
            .iter()
            .chain(more)
            .map(String::as_str)
            .collect::<Vec<_>>(),
    )
}

/// A snapshot of a guest with so much RAM, of which a quarter is stored.
pub(crate) fn snapshot(memory: &Path, gib: u64, file: &Path) -> Outcome<()> {
    let ram = memory.join("ram");
    let room = File::create(&ram)?;
    room.set_len(gib << 30)?;
    let mut numbers = crate::image::Numbers::new(gib);
    let mut piece = vec![0; 1 << 20];
    // The firmware and the boot sector use what is below.
    for mib in (4..gib << 10).step_by(4) {
        piece
            .chunks_mut(8)
            .for_each(|word| word.copy_from_slice(&numbers.next().to_le_bytes()));
        room.write_all_at(&piece, mib << 20)?;
    }
    let object = format!(
        "memory-backend-file,id=pc.ram,size={gib}G,share=on,mem-path={}",
        ram.display()
    );
    let more = ["-machine", "memory-backend=pc.ram", "-object", &object].map(String::from);
    let mut source = bare(&machine(gib), &more);
    source.wait_serial(3);
    let args = [
        "snapshot",
        "--qmp",
        text(&source.monitor)?,
        "--out",
        text(file)?,
    ];
    run(&[&args, ["--no-space-check"].as_slice()].concat())?;
    drop(source);
    std::fs::remove_file(&ram)?;
    Ok(())
}

/// Waits for a guest's first word.
pub(crate) fn first_word(qemu: &Qemu, begun: Instant) -> f64 {
    while !qemu.serial().contains('\n') {
        std::thread::sleep(LOOK);
    }
    begun.elapsed().as_secs_f64()
}

pub(crate) fn waits(gib: u64) -> Qemu {
    bare(&machine(gib), &["-incoming", "defer"].map(String::from))
}

pub(crate) fn options(file: &Path) -> Outcome<Vec<String>> {
    let (_, result) = run(&["qemu-options", "--json", text(file)?])?;
    let words = result["arguments"].as_array().cloned().unwrap_or_default();
    let word = |word: &Value| word.as_str().unwrap_or_default().to_owned();
    Ok(words.iter().map(word).collect())
}

/// From the command to the guest's first word.
pub(crate) fn ours(qemu: &Qemu, file: &Path, more: &[&str]) -> Outcome<Took> {
    let before = cpu(qemu.pid());
    let begun = Instant::now();
    let args = [
        "restore",
        "--json",
        "--qmp",
        text(&qemu.monitor)?,
        text(file)?,
    ];
    let running = start(&[&args, more].concat())?;
    let seconds = first_word(qemu, begun);
    let used = cpu(qemu.pid()) - before;
    let (took, _) = running.end()?;
    Ok(Took {
        seconds,
        cpu: took.cpu + used,
        ..took
    })
}

pub(crate) fn measure(stage: &Stage, gib: u64, out: &mut dyn Write) -> Outcome<Vec<Row>> {
    let case = format!("first word, {gib} GiB");
    if !stage.wants(&case) {
        return Ok(Vec::new());
    }
    let file = stage.disk.join("start.mapped");
    snapshot(&stage.memory, gib, &file)?;
    let options = options(&file)?;
    let ways: Vec<Way<'_>> = vec![
        (
            "QEMU's own load".into(),
            Box::new(|| {
                let mut qemu = waits(gib);
                let (begun, before) = (Instant::now(), cpu(qemu.pid()));
                load(&mut qemu, &file);
                Ok(Took {
                    seconds: first_word(&qemu, begun),
                    cpu: cpu(qemu.pid()) - before,
                    ..Took::default()
                })
            }),
        ),
        (
            "multifd restore".into(),
            Box::new(|| ours(&waits(gib), &file, &[])),
        ),
        (
            "multifd restore --instant".into(),
            Box::new(|| ours(&bare(&machine(gib), &options), &file, &["--instant"])),
        ),
    ];
    let rows = in_turn(&case, stage, ways, out)?;
    std::fs::remove_file(&file)?;
    let _ = std::fs::remove_file(file.with_extension("mapped.crc"));
    Ok(rows)
}

/// What so many clones of one snapshot have of its RAM.
#[derive(Debug, Serialize)]
pub(crate) struct Clones {
    guest: &'static str,
    /// Resident bytes of RAM of the one that has touched most.
    touched: u64,
    /// The sum of Pss of RAM over eight.
    together: u64,
    /// What they have written to, over all eight: nobody can share that.
    written: u64,
}

/// A figure of the mappings of a file in a process, in bytes.
fn of_file(pid: u32, file: &Path, name: &str) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut ours, mut sum) = (false, 0);
    let path = file.to_string_lossy();
    for line in smaps.lines() {
        if line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            ours = line.contains(&*path);
        } else if ours && let Some(rest) = line.strip_prefix(name) {
            let kib = rest.trim().trim_end_matches(" kB").parse::<u64>();
            sum += kib.unwrap_or(0) << 10;
        }
    }
    sum
}

/// Eight clones of a Linux guest: each has passed over its memory once.
pub(crate) fn clones(stage: &Stage, out: &mut dyn Write) -> Outcome<Vec<Clones>> {
    let Some(guest) = LinuxGuest::find().filter(|_| stage.wants("clones")) else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for (name, append, passes) in [
        ("idle", "memory=0 dirty=0:0", 0),
        (
            "checks 200 MiB, writes a 16th of it",
            "memory=200 dirty=0:0",
            1,
        ),
    ] {
        let args = guest.sized(&stage.memory.join("disk"), 512, append);
        let mut source = bare(&args, &[]);
        while Said::read(&source.serial()).ticks.len() < 200
            || Said::read(&source.serial()).memory.len() < 2 * passes
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        let file = stage.memory.join("clones.mapped");
        run(&[
            "snapshot",
            "--qmp",
            text(&source.monitor)?,
            "--out",
            text(&file)?,
        ])?;
        source.execute("quit", &json!({}));
        source.wait_ended();
        let clones = Clones {
            guest: name,
            ..together(stage, &args, &file, (8, passes))?
        };
        #[allow(clippy::cast_precision_loss)] // Figures for people.
        let ratio = clones.together as f64 / clones.touched as f64;
        #[allow(clippy::cast_precision_loss)] // Figures for people.
        let shared = (clones.together - clones.written) as f64 / clones.touched as f64;
        writeln!(
            out,
            "clones, {name}: one touches {} MiB; the Pss of eight adds up to {} MiB ({ratio:.2}), of which they wrote \
             {} MiB; without that {shared:.2}",
            clones.touched >> 20,
            clones.together >> 20,
            clones.written >> 20
        )?;
        all.push(clones);
        std::fs::remove_file(&file)?;
        let _ = std::fs::remove_file(file.with_extension("mapped.crc"));
    }
    Ok(all)
}

/// Runs so many clones, and looks at their RAM.
fn together(
    stage: &Stage,
    args: &[String],
    file: &Path,
    (count, passes): (usize, usize),
) -> Outcome<Clones> {
    let path = |name: &str, n: usize| stage.memory.join(format!("{name}{n}"));
    let pid_file = format!("{}/pid{{n}}", stage.memory.display());
    let serial = format!("file:{}/serial{{n}}", stage.memory.display());
    let mut child = Command::new(program::path())
        .args(["run", text(file)?, "--count", &count.to_string(), "--"])
        .arg(multifd_tests::qemu::program().ok_or("there is no QEMU")?)
        .args(["-nodefaults", "-display", "none"])
        .args(args)
        .args(["-serial", &serial, "-pidfile", &pid_file])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let said = |n: usize| {
        let text = std::fs::read_to_string(path("serial", n)).unwrap_or_default();
        Said::read_without_disk(&text)
    };
    while (1..=count).any(|n| said(n).memory.len() < passes || said(n).ticks.len() < 20) {
        if child.try_wait()?.is_some() {
            return Err("the clones have ended".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let pids = (1..=count).map(|n| {
        let text = std::fs::read_to_string(path("pid", n)).unwrap_or_default();
        text.trim().parse::<u32>().unwrap_or(0)
    });
    let pids: Vec<u32> = pids.collect();
    let touched = pids.iter().map(|&pid| of_file(pid, file, "Rss:")).max();
    let sum = |name: &str| pids.iter().map(|&pid| of_file(pid, file, name)).sum();
    let clones = Clones {
        guest: "",
        touched: touched.unwrap_or(0),
        together: sum("Pss:"),
        written: sum("Anonymous:"),
    };
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).ok_or("no process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    child.wait()?;
    for n in 1..=count {
        let _ = std::fs::remove_file(path("serial", n));
    }
    Ok(clones)
}
