//! Snapshots that become a QEMU's RAM: guests go on from the very next tick, the file stays as it
//! is, and what cannot be mapped safely is refused or loaded.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::guest::{count, sha256};
use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::program::{self, extract, json, run};
use multifd_tests::qemu::{Qemu, program};
use multifd_tests::stores::{Served, store};
use serde_json::{Value, json as object};
use snapshot_steps::{
    boot, load_by_qemu, running, running_privately, said, snapshot, succeed, text,
};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const BOOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/boot.bin");

/// How often a guest is started from one snapshot: `MULTIFD_STARTS` says it, for a long run.
fn starts() -> usize {
    let asked = std::env::var("MULTIFD_STARTS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(8)
}

/// The options that a QEMU needs to map a snapshot.
fn options(file: &Path) -> Vec<String> {
    let output = json(&succeed(&["qemu-options", "--json", text(file)]));
    let list = output["arguments"].as_array().unwrap();
    list.iter()
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

fn start(args: &[String], more: &[&str]) -> Qemu {
    let all: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    Qemu::bare(&all)
}

/// A QEMU that maps a snapshot, and waits.
fn mapping(args: &[String], file: &Path, more: &[&str]) -> Qemu {
    start(&[args, &options(file)].concat(), more)
}

fn restore(qemu: &Qemu, file: &Path, more: &[&str]) -> Value {
    let monitor = qemu.monitor.clone();
    let args = [
        "restore",
        "--instant",
        "--json",
        "--qmp",
        text(&monitor),
        text(file),
    ];
    json(&succeed(&[&args, more].concat()))
}

/// What the program says when it refuses.
fn refused(qemu: &Qemu, file: &Path) -> String {
    let monitor = qemu.monitor.clone();
    let output = run(&["restore", "--instant", "--qmp", text(&monitor), text(file)]);
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(said.contains("Nothing was changed"), "{said}");
    said
}

fn bytes(path: &Path) -> String {
    sha256(&std::fs::read(path).unwrap())
}

/// A figure of a process's mappings of a file, KiB.
fn of_file(pid: u32, file: &Path, name: &str) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut ours = false;
    let mut sum = 0;
    for line in smaps.lines() {
        if line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            ours = line.contains(text(file));
        } else if ours && let Some(rest) = line.strip_prefix(name) {
            sum += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    sum
}

/// A PC's snapshot, taken by a way.
fn pc(folder: &TempDir, name: &str, more: &[&str]) -> (PathBuf, u32) {
    // Shared memory cannot be write-protected.
    let source = if more.contains(&"--background") {
        running_privately()
    } else {
        running()
    };
    let (file, _) = snapshot(&source, folder, name, more);
    let before = count(&extract(&file, "pc.ram"));
    (file, before)
}

#[test]
fn files_of_any_origin_start_at_once_and_stay_as_they_are() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("theirs");
    let mut source = running();
    source.mapped_ram(2, false);
    source.migrate(&format!("file:{}", theirs.display()));
    source.wait_completed();
    drop(source);
    let files = [
        (theirs.clone(), count(&extract(&theirs, "pc.ram"))),
        pc(&folder, "file", &["--via", "file"]),
        pc(&folder, "socket", &["--via", "socket"]),
        pc(&folder, "background", &["--background"]),
    ];
    // Nobody may write to them, or to the folder.
    let set = |mode| {
        for (file, _) in &files {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode & 0o666)).unwrap();
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(0o555);
    for (file, before) in &files {
        let sum = bytes(file);
        let mut qemu = mapping(&boot("pc"), file, &["-S"]);
        let result = restore(&qemu, file, &[]);
        assert_eq!(result["mapped"]["bytes"], 16 << 20, "{result}");
        assert_eq!(result["mapped"]["reloaded_pages"], 0, "{result}");
        qemu.goes_on(*before);
        assert_eq!(bytes(file), sum, "{}", file.display());
    }
    set(0o755);
}

#[test]
fn it_goes_on_from_the_next_tick_every_time() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, before) = pc(&folder, "vm.mapped", &[]);
    for _ in 0..starts() {
        let mut qemu = mapping(&boot("pc"), &file, &["-S"]);
        let result = restore(&qemu, &file, &[]);
        assert_eq!(result["state"], "paused");
        qemu.goes_on(before);
    }
}

#[test]
fn a_linux_guest_goes_on_every_time() {
    let Some(guest) = LinuxGuest::find().filter(|_| program().is_some()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let args = guest.arguments(&folder.path().join("disk"));
    let mut source = start(&args, &[]);
    while Said::read(&source.serial()).memory.len() < 3 {
        assert!(!source.has_ended(), "{}", source.said());
    }
    let (file, _) = snapshot(&source, &folder, "vm.mapped", &["--max-rounds", "4"]);
    while Said::read(&source.serial()).memory.len() < 5 {}
    let ticks = Said::read(&source.serial()).ticks;
    drop(source);
    let mut last = None;
    for _ in 0..starts().div_ceil(4) {
        let mut copy = mapping(&args, &file, &[]);
        restore(&copy, &file, &[]);
        let found = loop {
            // Its disk is not the one of then.
            let found = Said::read_without_disk(&copy.serial());
            if found.memory.len() >= 2 {
                break found;
            }
            assert!(!copy.has_ended(), "{}", copy.said());
        };
        // The first line may be the rest of one.
        let first = found.ticks[1].0;
        assert!(
            ticks.iter().any(|tick| tick.0 == first),
            "tick {first} is not of the source"
        );
        assert!(found.ticks.windows(2).all(|two| two[1].0 == two[0].0 + 1));
        assert!(found.memory.windows(2).all(|two| two[1] == two[0] + 1));
        assert!(
            last.is_none_or(|last: u64| last.abs_diff(first) <= 1),
            "{last:?}, {first}"
        );
        last = Some(first);
    }
}

#[test]
fn other_machines_nodes_and_dimms() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let numa = [
        "-m",
        "64",
        "-object",
        "memory-backend-ram,id=node0,size=32M",
        "-object",
        "memory-backend-ram,id=node1,size=32M",
        "-numa",
        "node,nodeid=0,memdev=node0",
        "-numa",
        "node,nodeid=1,memdev=node1",
    ];
    let dimm = [
        "-m",
        "64,slots=2,maxmem=1G",
        "-object",
        "memory-backend-ram,id=extra,size=128M",
        "-device",
        "pc-dimm,id=dimm,memdev=extra",
    ];
    let virtio_mem = [
        "-m",
        "64,maxmem=1G",
        "-object",
        "memory-backend-ram,id=grown,size=128M",
        "-device",
        "virtio-mem-pci,id=vm0,memdev=grown,requested-size=64M",
    ];
    let drive = format!("if=floppy,format=raw,readonly=on,file={BOOT}");
    for (name, machine, more, blocks) in [
        ("q35", "q35", ["-m", "64"].as_slice(), 1),
        ("microvm", "microvm", &["-m", "64"], 1),
        ("numa", "pc", &numa, 2),
        ("dimm", "pc", &dimm, 2),
        // Pieces of its memory are discarded: that is loaded.
        ("virtio-mem", "q35", &virtio_mem, 1),
    ] {
        let has_floppy = machine == "pc";
        let mut args: Vec<String> = ["-M", machine].map(String::from).to_vec();
        if has_floppy {
            args.extend(["-drive".into(), drive.clone()]);
        }
        args.extend(more.iter().map(|word| (*word).to_owned()));
        let mut source = start(&args, &[]);
        if has_floppy {
            source.wait_serial(3);
        }
        source.execute("stop", &object!({}));
        let (file, _) = snapshot(&source, &folder, name, &[]);
        drop(source);
        // What the source was started with, with the backends replaced.
        let given: Vec<_> = args.iter().map(Into::into).collect();
        let opened = multifd_qemu::file::SnapshotFile::open(&file, None).unwrap();
        let options = multifd_qemu::instant::QemuOptions::of(&opened).unwrap();
        let applied = options.apply(&given).unwrap();
        let applied: Vec<String> = applied
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        let mut qemu = start(&applied, &["-S"]);
        let result = restore(&qemu, &file, &[]);
        assert_eq!(result["mapped"]["blocks"], blocks, "{name}: {result}");
        if has_floppy {
            let main = if name == "numa" { "node0" } else { "pc.ram" };
            qemu.goes_on(count(&extract(&file, main)));
        } else {
            // The same memory as one that loads all of it.
            qemu.execute("cont", &object!({}));
            assert_eq!(qemu.state(), "running", "{name}");
        }
    }
}

/// Guest physical memory as QEMU's monitor saves it.
fn physical(qemu: &mut Qemu, at: u64, len: u64, folder: &Path) -> Vec<u8> {
    let out = folder.join("pmem");
    qemu.execute(
        "pmemsave",
        &object!({ "val": at, "size": len, "filename": text(&out) }),
    );
    std::fs::read(&out).unwrap()
}

#[test]
fn pages_that_are_not_the_snapshots_are_loaded() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, before) = pc(&folder, "vm.mapped", &["--via", "socket"]);
    // QEMU itself writes into the guest's memory at its start.
    let loader = "loader,addr=0x700000,data=0x1122334455667788,data-len=8";
    let mut qemu = mapping(&boot("pc"), &file, &["-S", "-device", loader]);
    let ram = extract(&file, "pc.ram");
    assert_ne!(
        physical(&mut qemu, 0x70_0000, 8, folder.path()),
        [0; 8],
        "the loader has written"
    );
    let result = restore(&qemu, &file, &[]);
    assert!(
        result["mapped"]["reloaded_pages"].as_u64().unwrap() >= 1,
        "{result}"
    );
    assert!(physical(&mut qemu, 1 << 20, 15 << 20, folder.path()) == ram[1 << 20..]);
    qemu.goes_on(before);
    drop(qemu);

    // One that populates its memory first has copied all of it, which is right, but not instant.
    let mut args = [boot("pc"), options(&file)].concat();
    let object = args
        .iter_mut()
        .find(|word| word.contains("memory-backend-file"));
    object.unwrap().push_str(",prealloc=on");
    let mut qemu = start(&args, &["-S"]);
    let result = restore(&qemu, &file, &[]);
    assert_eq!(result["mapped"]["reloaded_pages"], 4096, "{result}");
    qemu.goes_on(before);
    drop(qemu);

    // A page that is zero, with something else in its place: as a QEMU leaves it that had written
    // the page in an earlier round.
    let opened = multifd_qemu::file::SnapshotFile::open(&file, None).unwrap();
    let block = &opened.mapped().blocks[0];
    assert_eq!(block.name, "pc.ram");
    let stored = multifd_transport_file::StoredPages::read(opened.file(), &block.layout).unwrap();
    let page = (2048..4096).find(|&page| !stored.contains(page)).unwrap();
    let at = block.layout.header().pages_offset + page * 4096;
    let writable = std::fs::File::options().write(true).open(&file).unwrap();
    writable.write_all_at(&[0xee; 4096], at).unwrap();
    assert!(extract(&file, "pc.ram") == ram, "the bitmap is what counts");
    let mut qemu = mapping(&boot("pc"), &file, &["-S"]);
    assert_eq!(physical(&mut qemu, page * 4096, 1, folder.path()), [0xee]);
    let result = restore(&qemu, &file, &[]);
    assert_eq!(result["mapped"]["reloaded_pages"], 1, "{result}");
    assert!(physical(&mut qemu, 1 << 20, 15 << 20, folder.path()) == ram[1 << 20..]);
    qemu.goes_on(before);
}

#[test]
fn what_is_missing_or_wrong_is_named_and_nothing_is_changed() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, before) = pc(&folder, "vm.mapped", &[]);
    let other = folder.path().join("other.mapped");
    std::fs::copy(&file, &other).unwrap();
    let object = options(&file)[1].clone();
    let with = |from: &str, to: &str| object.replace(from, to);
    let private = "size=16777216,offset=1048576,share=off,readonly=on,rom=off";
    assert!(object.contains(private), "{object}");
    let memfd = "memory-backend-memfd,id=pc.ram,size=16M".to_owned();
    for (backend, expected) in [
        (None, "memory backend \"pc.ram\" is a memory-backend-ram"),
        (Some(memfd), "is a memory-backend-memfd"),
        (
            Some(with("offset=1048576", "offset=0")),
            "has offset=0, and needs 1048576",
        ),
        (
            Some(with("share=off,readonly=on,rom=off", "share=off")),
            "has readonly=false",
        ),
        (
            Some(with("share=off,readonly=on,rom=off", "share=on")),
            "has share=true",
        ),
        (Some(with("vm.mapped", "other.mapped")), "maps \""),
    ] {
        let mut args = boot("pc");
        if let Some(backend) = backend {
            args.extend([
                "-object".into(),
                backend,
                "-machine".into(),
                "memory-backend=pc.ram".into(),
            ]);
        }
        args.extend(["-incoming".into(), "defer".into()]);
        let mut qemu = start(&args, &["-S"]);
        let said = refused(&qemu, &file);
        assert!(
            said.contains(expected) && said.contains("-object memory-backend-file,id=pc.ram"),
            "{said}"
        );
        assert_eq!(qemu.state(), "inmigrate");
    }
    // Locked memory, and a device whose other end would see another memory.
    for (more, expected) in [
        (
            ["-overcommit", "mem-lock=on"].as_slice(),
            "locks its memory",
        ),
        (
            &[
                "-device",
                "ivshmem-plain,memdev=shm",
                "-object",
                "memory-backend-ram,id=shm,size=1M,share=on",
            ],
            "ivshmem",
        ),
    ] {
        let mut qemu = mapping(&boot("pc"), &file, &[more, &["-S"]].concat());
        let said = refused(&qemu, &file);
        assert!(said.contains(expected), "{said}");
        assert_eq!(qemu.state(), "inmigrate");
    }
    // Replaced after QEMU had mapped it: another file has the name now.
    let mut qemu = mapping(&boot("pc"), &file, &["-S"]);
    std::fs::rename(&other, &file).unwrap();
    let said = refused(&qemu, &file);
    assert!(said.contains("was replaced after"), "{said}");
    assert_eq!(qemu.state(), "inmigrate");
    drop(qemu);
    // A QEMU that was refused before takes it once it is right.
    let mut qemu = mapping(&boot("pc"), &file, &["-S"]);
    restore(&qemu, &file, &["--verify"]);
    qemu.goes_on(before);
}

#[test]
fn a_damaged_page_is_found_before_or_behind_the_guest() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = pc(&folder, "vm.mapped", &[]);
    let opened = multifd_qemu::file::SnapshotFile::open(&file, None).unwrap();
    let layout = opened.mapped().blocks[0].layout;
    let stored = multifd_transport_file::StoredPages::read(opened.file(), &layout).unwrap();
    let page = stored.last().unwrap();
    let at = layout.header().pages_offset + page * 4096;
    let writable = std::fs::File::options().write(true).open(&file).unwrap();
    writable.write_all_at(&[0x5a; 64], at).unwrap();
    let mut qemu = mapping(&boot("pc"), &file, &[]);
    let monitor = qemu.monitor.clone();
    let args = ["restore", "--qmp", text(&monitor), text(&file), "--verify"];
    for more in [[].as_slice(), &["--instant"]] {
        let output = run(&[&args, more].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(
            said(&output).contains("damaged, and was not given to QEMU"),
            "{}",
            said(&output)
        );
        assert_eq!(qemu.state(), "inmigrate");
    }
    let output = run(&[
        "restore",
        "--instant",
        "--qmp",
        text(&monitor),
        text(&file),
        "--verify=background",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    let address = format!(
        "guest physical address {:#x}",
        page * 4096 / (1 << 20) * (1 << 20)
    );
    assert!(
        said.contains("has been stopped") && said.contains(&address),
        "{said}"
    );
    assert_eq!(qemu.state(), "paused");
    qemu.execute("quit", &object!({}));
    qemu.wait_ended();
}

/// Runs `multifd run`, and waits for the end.
fn run_qemu(file: &Path, more: &[&str], qemu: &[&str]) -> std::process::Output {
    let name = std::env::var("MULTIFD_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into());
    let mut args = vec!["run", text(file)];
    args.extend(more);
    args.extend([
        "--",
        &name,
        "-nodefaults",
        "-display",
        "none",
        "-accel",
        "tcg",
    ]);
    args.extend(qemu);
    run(&args)
}

/// Runs a guest until it has reported three times, and ends it by its monitor, which is the user's;
/// so is the exit status. Returns the first number that it reports.
fn run_until_it_reports(from: &str, serial: &Path) -> u32 {
    let drive = format!("if=floppy,format=raw,readonly=on,file={BOOT}");
    let serial_to = format!("file:{}", serial.display());
    let args = [
        "-M", "pc", "-m", "16", "-drive", &drive, "-serial", &serial_to,
    ];
    let reports = || std::fs::read_to_string(serial).unwrap_or_default();
    let name = std::env::var("MULTIFD_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into());
    let mut child = Command::new(program::path())
        .args([
            "run",
            from,
            "--",
            &name,
            "-nodefaults",
            "-display",
            "none",
            "-accel",
            "tcg",
        ])
        .args(args)
        .args(["-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while reports().matches('\n').count() < 3 {
        assert!(child.try_wait().unwrap().is_none());
    }
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"quit\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("the guest goes on from"),
        "{}",
        said(&output)
    );
    let first = reports().lines().next().unwrap().to_owned();
    u32::from_str_radix(first.strip_prefix('C').unwrap(), 16).unwrap()
}

#[test]
fn run_hands_the_qemu_over_and_returns_its_exit_status() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, before) = pc(&folder, "vm.mapped", &[]);
    // The same from a store.
    let _served = Served(folder.path());
    let stored = store(folder.path(), "vm");
    succeed(&["store", "import", "-q", text(&file), &stored]);
    let ram = folder.path().join("ram");
    let args = ["--block", "pc.ram", "--out", text(&ram)];
    succeed(&[&["extract", &stored][..], &args].concat());
    assert!(std::fs::read(&ram).unwrap() == extract(&file, "pc.ram"));
    for (number, from) in [text(&file), &stored].into_iter().enumerate() {
        let serial = folder.path().join(format!("serial{number}"));
        let first = run_until_it_reports(from, &serial);
        assert!(
            first == (before & !0xfff) + 0x1000 || first == before,
            "{from}: {first:x}, {before:x}"
        );
    }
    // A machine that does not fit, and a QEMU that does not start, are said.
    let output = run_qemu(
        &file,
        &[],
        &["-M", "pc", "-m", "16", "-device", "no-such-device"],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("QEMU ended before"),
        "{}",
        said(&output)
    );
    let output = run_qemu(&file, &[], &["-M", "q35", "-m", "16"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("another machine"),
        "{}",
        said(&output)
    );
    let output = run_qemu(&file, &[], &["-M", "pc", "-m", "16", "-incoming", "defer"]);
    assert!(
        said(&output).contains("leave -incoming"),
        "{}",
        said(&output)
    );
}

#[test]
fn clones_share_what_they_do_not_write_and_outlive_the_files_name() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, before) = pc(&folder, "vm.mapped", &[]);
    let sum = bytes(&file);
    let drive = format!("if=floppy,format=raw,readonly=on,file={BOOT}");
    let path = |name: &str| format!("{}/{name}", folder.path().display());
    let pid_file = path("pid{n}");
    let serial = format!("file:{}", path("serial{n}"));
    let name = std::env::var("MULTIFD_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into());
    let start = |count: &str| {
        Command::new(program::path())
            .args(["run", text(&file), "--count", count, "--", &name])
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-accel",
                "tcg",
                "-M",
                "pc",
                "-m",
                "16",
            ])
            .args(["-drive", &drive, "-serial", &serial, "-pidfile", &pid_file])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let lines = |n: usize| std::fs::read_to_string(path(&format!("serial{n}"))).unwrap_or_default();
    let pid = |n: usize| -> u32 {
        let text = std::fs::read_to_string(path(&format!("pid{n}"))).unwrap();
        text.trim().parse().unwrap()
    };
    let wait = |child: &mut std::process::Child, count: usize, at_least: usize| {
        while (1..=count).any(|n| lines(n).matches('\n').count() < at_least) {
            assert!(child.try_wait().unwrap().is_none(), "multifd run ended");
        }
    };
    let end = |mut child: std::process::Child| {
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap()
    };
    let mut one = start("1");
    wait(&mut one, 1, 6);
    let alone = of_file(pid(1), &file, "Rss:");
    end(one);
    std::fs::remove_file(path("serial1")).unwrap();
    let mut eight = start("8");
    wait(&mut eight, 8, 6);
    let total = |name: &str| -> u64 { (1..=8).map(|n| of_file(pid(n), &file, name)).sum() };
    let (all, own) = (total("Pss:"), total("Anonymous:"));
    println!(
        "RAM of one clone: {alone} KiB; of eight together: {all} KiB, of which they wrote {own} KiB"
    );
    assert!(
        (all - own) * 10 <= alone * 13,
        "what they do not write is there once"
    );
    // Another snapshot takes the name; the clones keep theirs.
    let (new, _) = pc(&folder, "new.mapped", &[]);
    std::fs::rename(&new, &file).unwrap();
    let at = lines(8).matches('\n').count();
    wait(&mut eight, 8, at + 3);
    for n in 1..=8 {
        let said = lines(n);
        assert!(!said.contains('T'), "{said}");
        let first = said.lines().next().unwrap();
        let first = u32::from_str_radix(first.strip_prefix('C').unwrap(), 16).unwrap();
        assert!(first == (before & !0xfff) + 0x1000 || first == before);
    }
    let status = end(eight);
    assert!(
        status.success(),
        "a QEMU that is told to end by a signal ends well: {status}"
    );
    assert_ne!(bytes(&file), sum);
}

#[test]
fn the_same_guest_as_by_qemus_own_load() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, before) = pc(&folder, "vm.mapped", &[]);
    let mut theirs = load_by_qemu(&file, false);
    let mut ours = mapping(&boot("pc"), &file, &["-S"]);
    restore(&ours, &file, &[]);
    let all = |qemu: &mut Qemu| physical(qemu, 0, 16 << 20, folder.path());
    assert!(all(&mut ours) == all(&mut theirs));
    theirs.goes_on(before);
    ours.goes_on(before);
}
