//! Pages sent without a copy: they arrive, it is counted, and limits on locked memory are met as
//! asked for.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_tests::netns::{self, Link};
use multifd_tests::program::{Recv, extract, path};
use multifd_tests::qemu::seeded;
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const MIB: usize = 64;

fn raw(folder: &Path) -> (Vec<u8>, String) {
    let bytes = seeded(MIB << 20, 11);
    let raw = folder.join("raw");
    std::fs::write(&raw, &bytes).unwrap();
    (bytes, raw.to_str().unwrap().to_owned())
}

fn said(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    multifd_tests::program::json(output)
}

#[test]
fn pages_arrive_and_the_kernels_own_copies_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, raw) = raw(folder.path());
    let out = folder.path().join("out");
    for (compression, channels) in [("none", "1"), ("none", "4"), ("zstd", "2")] {
        let recv = Recv::start("tcp:127.0.0.1:0", &out, &["--force", "--no-digest"]);
        let args = [
            "send",
            "--json",
            "--raw",
            &raw,
            "--to",
            &recv.address,
            "--zero-copy",
            "on",
        ];
        let more = ["--compression", compression, "--channels", channels];
        let said = said(&multifd_tests::program::run(&[&args[..], &more].concat()));
        recv.succeed();
        assert!(
            extract(&out, "pc.ram") == bytes,
            "{compression} x{channels}"
        );
        let count = |name: &str| said["zero_copy"][name].as_u64().unwrap();
        if compression == "none" {
            // Whoever receives on this machine gets a copy: the kernel says so of each send, and
            // every one is accounted for.
            assert!(count("sends") > 20, "{said}");
            assert_eq!(count("copied"), count("sends"), "{said}");
        } else {
            assert_eq!(
                count("sends"),
                0,
                "what is compressed is in memory that is used again: {said}"
            );
        }
        assert_eq!(count("fell_back"), 0, "{said}");
    }
}

#[test]
fn a_unix_socket_can_not_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, raw) = raw(folder.path());
    let out = folder.path().join("out");
    let listen = format!("unix:{}", folder.path().join("socket").display());
    let recv = Recv::start(&listen, &out, &[]);
    let address = recv.address.clone();
    let args = ["send", "--raw", &raw, "--to", &address, "--zero-copy"];
    let output = multifd_tests::program::run(&[&args[..], &["on"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        stderr.contains("cannot be sent without a copy over Unix sockets"),
        "{stderr}"
    );
    assert_eq!(recv.finish().status.code(), Some(1));
    let recv = Recv::start(&listen, &out, &[]);
    let output = multifd_tests::program::run(&[&args[..], &["auto"]].concat());
    assert!(output.status.success());
    recv.succeed();
    assert!(extract(&out, "pc.ram") == bytes);
}

/// A process without privileges may lock little memory: over a slow link that is soon used up.
#[test]
fn a_limit_on_locked_memory_is_an_error_or_a_counted_copy() {
    if !netns::possible() {
        return;
    }
    let link = Link::new();
    link.limit(Some(2000));
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("multifd");
    std::fs::copy(path(), &program).unwrap();
    let (bytes, raw) = raw(folder.path());
    let out = folder.path().join("out");
    for (how, limit) in [("on", "8192"), ("auto", "8192"), ("on", "4194304")] {
        let recv = [
            "recv",
            "--listen",
            "tcp:10.77.0.2:0",
            "--force",
            "--no-digest",
            "--out",
            out.to_str().unwrap(),
        ];
        let recv = Recv::listening(Some(&link.far), &recv);
        let output: Output = {
            let mut command: Command = netns::command(Some(&link.near), OsStr::new("prlimit"));
            command
                .arg(format!("--memlock={limit}:{limit}"))
                .args([
                    "setpriv",
                    "--reuid=65534",
                    "--regid=65534",
                    "--clear-groups",
                    "--inh-caps=-all",
                ])
                .arg(&program)
                .args([
                    "send",
                    "--json",
                    "--raw",
                    &raw,
                    "--to",
                    &recv.address,
                    "--zero-copy",
                    how,
                ])
                .output()
                .unwrap()
        };
        if (how, limit) == ("on", "8192") {
            assert_eq!(output.status.code(), Some(1));
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(stderr.contains("no more memory can be locked"), "{stderr}");
            assert_eq!(recv.finish().status.code(), Some(1));
            continue;
        }
        let said = said(&output);
        recv.succeed();
        assert!(extract(&out, "pc.ram") == bytes, "{how}");
        let fell_back = said["zero_copy"]["fell_back"].as_u64().unwrap();
        assert_eq!(fell_back > 0, how == "auto", "{said}");
        // What waits for earlier sends to complete is no copy.
        let sends = said["zero_copy"]["sends"].as_u64().unwrap();
        assert_eq!(sends > 0, how == "on", "{said}");
    }
}
