//! Files of users: no input is ever written to, nothing but a regular file is ever replaced, a
//! companion belongs to its file, and what is read takes memory and time by what is stored.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_packet::MappedRamLayout;
use multifd_qemu::{BlockInfo, Configuration, MappedWriter, Tail};
use multifd_tests::golden::Golden;
use multifd_tests::program::{Recv, json, path, run};
use multifd_tests::qemu::seeded;
use snapshot_steps::{said, text};
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A snapshot with a companion, and the folder it lies in.
fn snapshot() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (raw, file) = (folder.path().join("raw"), folder.path().join("vm.mapped"));
    std::fs::write(&raw, seeded(2 << 20, 3)).unwrap();
    send(&raw, &file, &[]).succeed();
    std::fs::remove_file(&raw).unwrap();
    (folder, file)
}

/// A `recv` of a raw image into a file, which has been sent.
fn send(raw: &Path, file: &Path, more: &[&str]) -> Recv {
    let recv = Recv::start("tcp:127.0.0.1:0", file, more);
    let sent = run(&["send", "-q", "--raw", text(raw), "--to", &recv.address]);
    assert!(sent.status.code().is_some(), "{}", said(&sent));
    recv
}

#[test]
fn an_input_is_never_an_output() {
    let (folder, file) = snapshot();
    let beside = folder.path().join("vm.mapped.crc");
    let link = folder.path().join("link");
    std::fs::hard_link(&file, &link).unwrap();
    let before = [&file, &beside].map(|path| std::fs::read(path).unwrap());
    for args in [
        ["inspect", "--force", text(&file), "--svg", text(&file)].as_slice(),
        &["inspect", "--force", text(&file), "--svg", text(&link)],
        &["inspect", "--force", text(&file), "--svg", text(&beside)],
        &[
            "extract",
            "--force",
            text(&file),
            "--block",
            "pc.ram",
            "--out",
            text(&file),
        ],
        &[
            "extract",
            "--force",
            text(&file),
            "--block",
            "pc.ram",
            "--out",
            text(&link),
        ],
        &["extract", "--force", text(&file), "--elf", text(&beside)],
        &[
            "extract",
            "--force",
            text(&file),
            "--layout",
            text(&link),
            "--elf",
            text(&link),
        ],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            said(&output).contains("an output must be another file"),
            "{args:?}: {}",
            said(&output)
        );
        assert_eq!(
            [&file, &beside].map(|path| std::fs::read(path).unwrap()),
            before,
            "{args:?}"
        );
    }
    // Nor is a picture replaced that nobody said may be.
    let svg = folder.path().join("map.svg");
    std::fs::write(&svg, "somebody's").unwrap();
    assert_eq!(
        run(&["inspect", text(&file), "--svg", text(&svg)])
            .status
            .code(),
        Some(1)
    );
    assert_eq!(std::fs::read_to_string(&svg).unwrap(), "somebody's");
    assert!(
        run(&["inspect", text(&file), "--force", "--svg", text(&svg)])
            .status
            .success()
    );
    assert!(std::fs::read_to_string(&svg).unwrap().starts_with("<svg "));
}

#[test]
fn only_a_regular_file_is_replaced() {
    let (folder, file) = snapshot();
    let path = |name: &str| folder.path().join(name);
    assert!(
        Command::new("mkfifo")
            .arg(path("fifo"))
            .status()
            .unwrap()
            .success()
    );
    let _socket = UnixListener::bind(path("socket")).unwrap();
    std::fs::create_dir(path("dir")).unwrap();
    std::fs::write(path("target"), "somebody's").unwrap();
    symlink(path("target"), path("link")).unwrap();
    let names = ["fifo", "socket", "dir", "link"].map(path);
    for out in names
        .iter()
        .map(|path| text(path))
        .chain(["/dev/null", "/dev/full"])
    {
        for args in [
            [
                "extract",
                "--force",
                text(&file),
                "--block",
                "pc.ram",
                "--out",
                out,
            ]
            .as_slice(),
            &["inspect", "--force", text(&file), "--svg", out],
            &[
                "recv",
                "--force",
                "--wait",
                "1",
                "--listen",
                "tcp:127.0.0.1:0",
                "--out",
                out,
            ],
        ] {
            let output = run(args);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(
                said(&output).contains("only a regular file is ever replaced"),
                "{}",
                said(&output)
            );
        }
    }
    assert!(path("fifo").metadata().unwrap().file_type().is_fifo());
    assert_eq!(
        std::fs::read_to_string(path("target")).unwrap(),
        "somebody's"
    );
    // The companion's name is no different.
    std::fs::create_dir(path("new.mapped.crc")).unwrap();
    let new = path("new.mapped");
    let args = [
        "recv",
        "--force",
        "--wait",
        "1",
        "--listen",
        "tcp:127.0.0.1:0",
        "--out",
        text(&new),
    ];
    assert!(
        said(&run(&args)).contains("new.mapped.crc is a folder"),
        "told before anything is received"
    );
}

#[test]
fn a_companion_goes_with_its_file() {
    let (folder, file) = snapshot();
    let raw = folder.path().join("raw");
    std::fs::write(&raw, seeded(1 << 20, 5)).unwrap();
    let beside = folder.path().join("vm.mapped.crc");
    let before = std::fs::read(&beside).unwrap();
    // A companion alone keeps its name, too.
    std::fs::remove_file(&file).unwrap();
    let args = [
        "recv",
        "--wait",
        "1",
        "--listen",
        "tcp:127.0.0.1:0",
        "--out",
        text(&file),
    ];
    let output = run(&args);
    assert!(
        said(&output).contains("vm.mapped.crc exists already"),
        "{}",
        said(&output)
    );
    assert_eq!(std::fs::read(&beside).unwrap(), before);
    // Replaced together; and gone with a file that has none.
    send(&raw, &file, &["--force"]).succeed();
    assert!(
        run(&["verify", "--require-digest", text(&file)])
            .status
            .success()
    );
    send(&raw, &file, &["--force", "--no-digest"]).succeed();
    assert!(!beside.exists());
    // Another takes the name while we receive: what it has finished is whole, with its companion.
    let theirs = folder.path().join("theirs");
    let recv = Recv::start("tcp:127.0.0.1:0", &theirs, &[]);
    send(&raw, &theirs, &[]).succeed();
    let finished =
        ["theirs", "theirs.crc"].map(|name| std::fs::read(folder.path().join(name)).unwrap());
    let other = folder.path().join("other");
    std::fs::write(&other, seeded(1 << 20, 9)).unwrap();
    let sent = run(&["send", "-q", "--raw", text(&other), "--to", &recv.address]);
    assert_eq!(sent.status.code(), Some(1));
    assert_eq!(recv.finish().status.code(), Some(1));
    assert_eq!(
        ["theirs", "theirs.crc"].map(|name| std::fs::read(folder.path().join(name)).unwrap()),
        finished
    );
    assert!(
        run(&["verify", "--require-digest", text(&theirs)])
            .status
            .success()
    );
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["other", "raw", "theirs", "theirs.crc", "vm.mapped"]);
}

/// Runs the program with a limit of address space; it must end within a time that only a hang
/// exceeds.
fn limited(args: &[&str]) -> Output {
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 600000; exec \"$@\"", "sh", text(path())])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(100);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{args:?} does not end");
        }
        std::thread::yield_now();
    }
    child.wait_with_output().unwrap()
}

#[test]
fn what_is_no_regular_file_is_not_waited_for() {
    let (folder, file) = snapshot();
    let fifo = folder.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let out = folder.path().join("out");
    let pc = folder.path().join("pc.mapped");
    std::fs::write(&pc, &Golden::load("mapped-2ch").files["snapshot.mapped"]).unwrap();
    for input in [text(&fifo), "/dev/zero", text(folder.path())] {
        for args in [
            ["inspect", input].as_slice(),
            &["verify", input],
            &["diff", input, text(&file)],
            &["diff", text(&file), input],
            &["extract", input, "--block", "pc.ram", "--out", text(&out)],
            &["send", input, "--to", "unix:/nonexistent/socket"],
            &["send", "--raw", input, "--to", "unix:/nonexistent/socket"],
            &["extract", text(&pc), "--elf", text(&out), "--layout", input],
        ] {
            let output = limited(args);
            let expected = if args[0] == "diff" { 2 } else { 1 };
            assert_eq!(output.status.code(), Some(expected), "{args:?}");
            assert!(
                said(&output).contains("a regular file is needed here"),
                "{args:?}: {}",
                said(&output)
            );
        }
    }
    // A companion that is none: `verify` says so, and nothing hangs or is read without end.
    let beside = folder.path().join("vm.mapped.crc");
    std::fs::remove_file(&beside).unwrap();
    let big = File::create(folder.path().join("big")).unwrap();
    big.set_len(4 << 30).unwrap();
    for target in [text(&fifo), "/dev/zero", text(&folder.path().join("big"))] {
        symlink(target, &beside).unwrap();
        let output = limited(&["verify", "--json", text(&file)]);
        assert_eq!(output.status.code(), Some(1), "{target}");
        let problems = json(&output)["problems"].to_string();
        assert!(
            problems.contains("regular file") || problems.contains("more than the"),
            "{target}: {problems}"
        );
        let output = limited(&["send", text(&file), "--to", "unix:/nonexistent/socket"]);
        assert!(
            said(&output).contains("/nonexistent/socket"),
            "{}",
            said(&output)
        );
        std::fs::remove_file(&beside).unwrap();
    }
}

/// 8 TiB of RAM in a file that takes a few kilobytes.
fn huge(path: &Path, page: u64) {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    let blocks = [BlockInfo {
        name: "pc.ram".into(),
        used_length: 8 << 40,
    }];
    let configuration = Configuration::new("pc-i440fx-10.0");
    let (writer, mapped) = MappedWriter::start(&file, 0, &configuration, 4096, 1, &blocks).unwrap();
    let layout: &MappedRamLayout = &mapped[0].layout;
    writer.finish(false, &Tail::empty(4096)).unwrap();
    let header = layout.header();
    file.write_all_at(&[1 << (page % 8)], header.bitmap_offset + page / 8)
        .unwrap();
    file.write_all_at(&[0x5a; 4096], header.pages_offset + page * 4096)
        .unwrap();
}

#[test]
fn what_a_file_claims_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    huge(&path("one"), 1 << 30);
    huge(&path("other"), (1 << 30) + 5);
    // 600 MB of address space, most of which the program itself takes.
    let inspected = json(&limited(&["inspect", "--json", text(&path("one"))]));
    assert_eq!(inspected["blocks"][0]["stored_pages"], 1);
    assert_eq!(
        json(&limited(&["verify", "--json", text(&path("one"))]))["ok"],
        true
    );
    let differs = limited(&[
        "diff",
        "--json",
        "--list",
        text(&path("one")),
        text(&path("other")),
    ]);
    assert_eq!(differs.status.code(), Some(1), "{}", said(&differs));
    assert_eq!(json(&differs)["changed_pages"], 2);
    let out = path("block");
    let output = limited(&[
        "extract",
        "-q",
        text(&path("one")),
        "--block",
        "pc.ram",
        "--out",
        text(&out),
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let mut page = [0; 4096];
    File::open(&out)
        .unwrap()
        .read_exact_at(&mut page, 1 << 42)
        .unwrap();
    assert_eq!(page, [0x5a; 4096]);
}

#[test]
fn a_result_that_cannot_be_printed_is_an_error() {
    let (_folder, file) = snapshot();
    for args in [
        ["inspect", text(&file)].as_slice(),
        &["inspect", "--json", text(&file)],
        &["verify", text(&file)],
        &["diff", text(&file), text(&file)],
        &["completions", "bash"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(path())
            .args(args)
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}");
        assert!(
            said(&output).contains("No space left on device"),
            "{args:?}: {}",
            said(&output)
        );
    }
}

#[test]
fn what_is_no_snapshot_and_what_is_missing_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    for command in ["inspect", "verify"] {
        let output = run(&[command, text(&readme)]);
        assert!(
            said(&output).contains("not a mapped-ram file"),
            "{}",
            said(&output)
        );
    }
    let none = folder.path().join("none");
    let golden = Golden::load("mapped-2ch").files["snapshot.mapped"].clone();
    let file = folder.path().join("vm.mapped");
    std::fs::write(&file, golden).unwrap();
    let output = run(&["diff", "--json", text(&file), text(&none)]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(json(&output)["ok"], false);
    assert_eq!(
        run(&["diff", text(&file), text(&file)]).status.code(),
        Some(0)
    );
}

#[test]
fn a_descriptor_of_the_input_is_the_input() {
    let (folder, file) = snapshot();
    let before = std::fs::read(&file).unwrap();
    let script = |args: &str| {
        let script = format!("exec 3<>\"$2\"; exec \"$1\" {args}");
        let output = Command::new("sh")
            .args(["-c", &script, "sh", text(path()), text(&file)])
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1), "{args}: {}", said(&output));
        assert!(
            said(&output).contains("an output must be another file"),
            "{args}: {}",
            said(&output)
        );
        assert!(std::fs::read(&file).unwrap() == before, "{args}");
    };
    script("extract \"$2\" --block pc.ram --out /dev/fdset/3");
    script("extract /dev/fdset/3 --block pc.ram --out \"$2\" --force");
    script("inspect \"$2\" --svg /dev/fd/3");
    drop(folder);
}

#[test]
fn a_companion_of_another_snapshot_is_not_believed() {
    let (folder, file) = snapshot();
    let raw = folder.path().join("raw");
    std::fs::write(&raw, seeded(3 << 20, 4)).unwrap();
    let other = folder.path().join("other");
    send(&raw, &other, &["--no-digest"]).succeed();
    std::fs::copy(&other, &file).unwrap();
    let output = run(&["inspect", "--json", text(&file)]);
    assert_eq!(json(&output)["has_digest"], false);
    assert!(
        said(&output).contains("its companion is of another snapshot"),
        "{}",
        said(&output)
    );
    assert_eq!(run(&["verify", text(&file)]).status.code(), Some(1));
}
