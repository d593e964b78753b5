//! The program as its users meet it: raw images, exit statuses, JSON, completions, man pages, the
//! progress bar.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_tests::program::{Recv, extract, json, path, run};
use multifd_tests::qemu::seeded;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_raw_image_arrives_by_every_method_and_goes_on_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("RAM.bin");
    let bytes = seeded(6 << 20, 7);
    std::fs::write(&raw, &bytes).unwrap();
    for (compression, level, channels) in [
        ("none", "--quiet", "1"),
        ("zlib", "--level=6", "2"),
        ("zstd", "--level=3", "4"),
        ("qpl", "--quiet", "2"),
        ("uadk", "--quiet", "2"),
        ("qatzip", "--quiet", "3"),
    ] {
        let first = folder.path().join(format!("{compression}.mapped"));
        let recv = Recv::start("tcp:127.0.0.1:0", &first, &["--channels", channels]);
        let sent = run(&[
            "send",
            "--raw",
            raw.to_str().unwrap(),
            "--block",
            "pc.ram",
            "--to",
            &recv.address,
            "--channels",
            channels,
            "--compression",
            compression,
            level,
            "--json",
        ]);
        assert!(sent.status.success(), "{}", text(&sent.stderr));
        let (sent, received) = (json(&sent), recv.succeed());
        assert_eq!(received["total"], sent["total"]);
        assert_eq!(received["compression"], compression);
        assert_eq!(received["blocks"][0]["bytes"], 6 << 20);
        assert!(extract(&first, "pc.ram") == bytes, "{compression}");

        let second = folder.path().join(format!("{compression}.again"));
        let socket = folder.path().join("socket");
        let recv = Recv::start(
            &format!("unix:{}", socket.display()),
            &second,
            &["--compression", "zstd"],
        );
        let sent = run(&[
            "send",
            first.to_str().unwrap(),
            "--to",
            &recv.address,
            "--compression",
            "zstd",
        ]);
        assert!(sent.status.success(), "{}", text(&sent.stderr));
        assert!(
            text(&sent.stdout).starts_with("sent 6.00 MiB of guest memory"),
            "{}",
            text(&sent.stdout)
        );
        recv.succeed();
        assert!(!socket.exists());
        assert!(extract(&second, "pc.ram") == bytes);
    }
}

#[test]
fn a_destination_that_fails_is_a_failure_of_the_source_too() {
    for unix in [false, true] {
        destination_fails(unix);
    }
}

/// It fails at its very end, when everything has been read: another has taken its file's name.
fn destination_fails(unix: bool) {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("RAM.bin");
    std::fs::write(&raw, seeded(4 << 20, 1)).unwrap();
    let out = folder.path().join("vm.mapped");
    let socket = format!("unix:{}", folder.path().join("socket").display());
    let recv = Recv::start(if unix { &socket } else { "tcp:127.0.0.1:0" }, &out, &[]);
    std::fs::write(&out, "somebody's").unwrap();
    let sent = run(&[
        "send",
        "--raw",
        raw.to_str().unwrap(),
        "--to",
        &recv.address,
        "--json",
    ]);
    assert_eq!(
        sent.status.code(),
        Some(1),
        "unix {unix}: {}",
        text(&sent.stdout)
    );
    assert_eq!(json(&sent)["ok"], false);
    let received = recv.finish();
    assert_eq!(received.status.code(), Some(1));
    let error = json(&received)["error"].as_str().unwrap().to_owned();
    assert!(
        error.contains("renaming into place: File exists"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "somebody's");
    assert_eq!(names(folder.path()), ["RAM.bin", "vm.mapped"]);
}

#[test]
fn a_method_that_was_not_asked_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("RAM.bin");
    std::fs::write(&raw, seeded(4 << 20, 1)).unwrap();
    let out = folder.path().join("vm.mapped");
    let recv = Recv::start("tcp:127.0.0.1:0", &out, &["--compression", "zlib"]);
    let sent = run(&[
        "send",
        "--raw",
        raw.to_str().unwrap(),
        "--to",
        &recv.address,
        "--json",
    ]);
    assert_eq!(sent.status.code(), Some(1));
    assert_eq!(json(&sent)["ok"], false);
    let received = recv.finish();
    assert_eq!(received.status.code(), Some(1));
    let error = json(&received)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("compression none, expected zlib"), "{error}");
    assert_eq!(names(folder.path()), ["RAM.bin"]);
}

#[test]
#[allow(clippy::too_many_lines)] // A table.
fn arguments_that_make_no_sense_are_refused_before_anything_happens() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, vec![1; 4097]).unwrap();
    let file = file.to_str().unwrap();
    let nowhere = "unix:/nonexistent/socket";
    for (args, status, expected) in [
        (vec!["recv"], 2, "--listen"),
        (
            vec!["recv", "--listen", "4444", "--out", "x"],
            2,
            "write tcp:HOST:PORT, unix:PATH",
        ),
        (
            vec!["recv", "--listen", "tcp:127.0.0.1:0", "--out", file],
            1,
            "--force replaces it",
        ),
        (
            vec![
                "recv",
                "--listen",
                "tcp:127.0.0.1:0",
                "--out",
                "/nonexistent/x",
            ],
            1,
            "/nonexistent/x: creating",
        ),
        (
            vec!["send", file, "--to", nowhere],
            1,
            "the magic number is 0x1010101, expected 0x5145564d",
        ),
        (
            vec!["send", "/nonexistent", "--to", nowhere],
            1,
            "/nonexistent: opening: No such file",
        ),
        (
            vec!["send", "--raw", file, "--to", nowhere],
            1,
            "not a positive multiple of the page size",
        ),
        (
            vec![
                "send",
                "--raw",
                file,
                "--to",
                nowhere,
                "--compression",
                "zlib",
                "--level",
                "10",
            ],
            1,
            "between 0 and 9",
        ),
        (
            vec!["send", "--raw", file, "--to", nowhere, "--level", "3"],
            1,
            "--level 3 is for zlib and zstd, and the compression is none",
        ),
        (
            vec![
                "send",
                "--raw",
                file,
                "--to",
                nowhere,
                "--compression",
                "auto",
                "--level",
                "3",
            ],
            1,
            "chooses levels by itself",
        ),
        (
            vec![
                "snapshot",
                "--qmp",
                "q",
                "--out",
                "x",
                "--compression",
                "auto",
            ],
            2,
            "[possible values: none, zlib, zstd, qpl, uadk, qatzip]",
        ),
        (
            vec!["extract", file, "--elf", "x", "--out", "y"],
            2,
            "cannot be used with",
        ),
        (
            vec!["extract", file, "--block", "pc.ram", "--out", file],
            1,
            "--force replaces it",
        ),
        (
            vec![
                "recv",
                "--listen",
                "tcp:127.0.0.1:0",
                "--out",
                "x",
                "--timeout",
                "99999999999",
            ],
            2,
            "is not in 1..=31536000",
        ),
        (vec!["demo", "--size", "many"], 2, "K, M, G or T"),
    ] {
        let output = run(&args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn a_block_that_is_not_there_is_answered_with_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("RAM.bin");
    std::fs::write(&raw, seeded(1 << 20, 1)).unwrap();
    let file = folder.path().join("vm.mapped");
    let recv = Recv::start("tcp:127.0.0.1:0", &file, &[]);
    assert!(
        run(&[
            "send",
            "--raw",
            raw.to_str().unwrap(),
            "--block",
            "mem0",
            "--to",
            &recv.address
        ])
        .status
        .success()
    );
    recv.succeed();
    let out = folder.path().join("out");
    let output = run(&[
        "extract",
        file.to_str().unwrap(),
        "--block",
        "pc.ram",
        "--out",
        out.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).ends_with("has no RAM block \"pc.ram\"; it has mem0\n"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(
        names(folder.path()),
        ["RAM.bin", "vm.mapped", "vm.mapped.crc"]
    );
}

#[test]
fn the_demo_verifies_every_method() {
    let output = run(&["demo", "--size", "8M", "--channels", "1,3", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = json(&output);
    let rows = shown["rows"].as_array().unwrap();
    let found: Vec<(&str, u64)> = rows
        .iter()
        .map(|row| {
            (
                row["compression"].as_str().unwrap(),
                row["channels"].as_u64().unwrap(),
            )
        })
        .collect();
    let expected = ["none", "zlib", "zstd"].map(|method| [(method, 1), (method, 3)]);
    assert_eq!(found, expected.concat());
    let ratio = |row: &Value| row["ratio"].as_f64().unwrap();
    assert!(
        rows.iter()
            .all(|row| row["verified"] == true && ratio(row) > 1.2)
    );
    assert!(ratio(&rows[2]) > ratio(&rows[0]), "zlib makes it smaller");
    let table = run(&["demo", "--size", "1M", "--channels", "2", "--quiet"]);
    let table = text(&table.stdout);
    assert!(
        table.starts_with("method  channels  seconds  guest GiB/s    wire bytes  ratio\nnone "),
        "{table}"
    );
    assert!(
        table.ends_with("every byte arrived, every time\n"),
        "{table}"
    );
}

#[test]
fn a_terminal_gets_a_progress_bar() {
    let command = format!(
        "{} demo --size 64M --channels 1 --compression zlib --level 9",
        path().display()
    );
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}");
    for expected in ["zlib over 1 [", "% ", "MiB/s ETA "] {
        assert!(shown.contains(expected), "{expected:?}: {shown:?}");
    }
}

#[test]
fn completions_and_man_pages_are_made_from_the_same_definitions() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("finish-timeout"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(
        run(&["man", folder.path().to_str().unwrap()])
            .status
            .success()
    );
    let pages = names(folder.path());
    assert!(pages.contains(&"multifd-recv.1".into()), "{pages:?}");
    let page = std::fs::read_to_string(folder.path().join("multifd-recv.1")).unwrap();
    assert!(page.contains("migrate_set_capability multifd on"));
    for command in ["recv", "send", "extract", "demo"] {
        let help = text(&run(&[command, "--help"]).stdout);
        assert!(
            help.contains("Examples:") && help.contains("--json"),
            "{command}: {help}"
        );
    }
}
