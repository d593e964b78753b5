//! Migrations that pass through `multifd relay`, between real QEMUs, and over a slow link.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_tests::guest::count;
use multifd_tests::netns::{self, Link};
use multifd_tests::program::{Recv, extract};
use multifd_tests::qemu::{Machine, Qemu, program};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;

fn relay(netns: Option<&str>, listen: &str, to: &str, more: &[&str]) -> Recv {
    Recv::listening(
        netns,
        &[&["relay", "--listen", listen, "--to", to], more].concat(),
    )
}

/// Machine type, method and channels in, method and channels out, options of the relay.
type Case = (
    &'static str,
    &'static str,
    u8,
    &'static str,
    u8,
    &'static [&'static str],
);

/// A paused guest passes from one QEMU to another, which speak different methods over different
/// numbers of channels.
#[test]
fn a_relay_joins_qemus_that_do_not_agree() {
    if program().is_none() {
        return;
    }
    let cases: [Case; 6] = [
        (
            "pc",
            "none",
            2,
            "zstd",
            4,
            &["--compression", "zstd", "--level", "3"],
        ),
        ("pc", "zstd", 4, "zlib", 1, &["--compression", "zlib"]),
        ("pc", "zlib", 1, "none", 3, &[]),
        (
            "pc",
            "none",
            2,
            "zstd",
            1,
            &["--compression", "zstd", "--compress-threads", "3"],
        ),
        (
            "pc",
            "zlib",
            2,
            "zstd",
            2,
            &["--compression", "zstd", "--level", "auto", "--checksum"],
        ),
        (
            "pc-i440fx-8.0",
            "zlib",
            2,
            "zstd",
            3,
            &["--compression", "zstd", "--from-channels", "2"],
        ),
    ];
    for (machine, from, channels_in, to, channels_out, more) in cases {
        let case = format!("{machine}: {from} x{channels_in} to {to} x{channels_out}");
        let from_machine = Machine {
            machine,
            ..Machine::default()
        };
        let to_machine = Machine {
            incoming: true,
            ..from_machine.clone()
        };
        let (mut source, mut target) = Qemu::start_pair(&from_machine, &to_machine);
        source.multifd(channels_in, from, "multifd");
        target.multifd(channels_out, to, "multifd");
        let address = target.listen("tcp:127.0.0.1:0");
        let out = channels_out.to_string();
        let relay = relay(
            None,
            "tcp:127.0.0.1:0",
            &address,
            &[&["--channels", &out], more].concat(),
        );
        source.migrate(&relay.address);
        source.wait_completed();
        target.wait_completed();
        let said = relay.succeed();
        assert!(source.ram_bytes() == target.ram_bytes(), "{case}");
        assert_eq!(said["incoming_compression"], from, "{case}");
        assert_eq!(said["incoming_channels"], channels_in, "{case}");
        assert_eq!(said["outgoing_channels"], channels_out, "{case}");
        let pages = |side: &str| {
            [&said[side]["normal_pages"], &said[side]["zero_pages"]].map(|n| n.as_u64().unwrap())
        };
        assert_eq!(pages("incoming"), pages("outgoing"), "{case}");
        assert!(pages("incoming")[0] > 500, "{case}");
    }
}

/// With a return path the destination answers, and ends its side first.
#[test]
fn a_return_path_passes_through() {
    if program().is_none() {
        return;
    }
    for _ in 0..5 {
        let incoming = Machine {
            incoming: true,
            ..Machine::default()
        };
        let (mut source, mut target) = Qemu::start_pair(&Machine::default(), &incoming);
        for qemu in [&mut source, &mut target] {
            qemu.multifd(2, "none", "multifd");
            qemu.capability("return-path");
        }
        let address = target.listen("tcp:127.0.0.1:0");
        let relay = relay(None, "tcp:127.0.0.1:0", &address, &[]);
        source.migrate(&relay.address);
        source.wait_completed();
        target.wait_completed();
        relay.succeed();
        assert!(source.ram_bytes() == target.ram_bytes());
    }
}

/// Memory does not grow with the guest's.
#[test]
fn a_relay_does_not_hold_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let mut peaks = Vec::new();
    for mib in [32usize, 512] {
        let raw = folder.path().join("raw");
        std::fs::write(&raw, multifd_tests::qemu::seeded(mib << 20, 3)).unwrap();
        let recv = Recv::start(
            "tcp:127.0.0.1:0",
            &folder.path().join("out"),
            &["--force", "--no-digest"],
        );
        let relay = relay(
            None,
            "tcp:127.0.0.1:0",
            &recv.address,
            &["--compression", "zstd", "--channels", "3"],
        );
        let status = format!("/proc/{}/status", relay.pid());
        let mut send = std::process::Command::new(multifd_tests::program::path())
            .args([
                "send",
                "--quiet",
                "--raw",
                raw.to_str().unwrap(),
                "--to",
                &relay.address,
            ])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // The kernel keeps the peak for as long as the process is there.
        let mut peak = 0;
        while send.try_wait().unwrap().is_none() {
            peak = peak.max(peak_kib(Path::new(&status)).unwrap_or(0));
        }
        assert!(send.wait().unwrap().success());
        relay.succeed();
        recv.succeed();
        peaks.push(peak);
    }
    assert!(peaks[0] > 1000, "nothing was measured: {peaks:?}");
    assert!(
        peaks[1] < peaks[0] + 8 * 1024,
        "KiB at the peak, for 32 and 512 MiB of RAM: {peaks:?}"
    );
    assert!(peaks[1] < 64 * 1024, "{peaks:?}");
}

fn peak_kib(status: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// What ends badly at one end ends badly at the other.
#[test]
fn a_failure_passes_through() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::write(&raw, multifd_tests::qemu::seeded(64 << 20, 3)).unwrap();
    let raw = raw.to_str().unwrap();
    for (unix, case) in [
        (false, "refused"),
        (true, "refused"),
        (true, "killed"),
        (false, "truncated"),
    ] {
        let listen = |name: &str| {
            if unix {
                format!("unix:{}", folder.path().join(name).display())
            } else {
                "tcp:127.0.0.1:0".into()
            }
        };
        let out = folder.path().join(format!("{case}-{unix}"));
        // A destination that takes less than this guest refuses it.
        let limit: &[&str] = if case == "refused" {
            &["--max-ram", "1M"]
        } else {
            &["--timeout", "3", "--wait", "12"]
        };
        let recv = Recv::start(&listen("recv"), &out, limit);
        let relay = relay(
            None,
            &listen("relay"),
            &recv.address,
            &["--timeout", "5", "--connect-timeout", "2"],
        );
        if case == "truncated" {
            // A source that dies while it speaks.
            let mut main = TcpStream::connect(relay.address.trim_start_matches("tcp:")).unwrap();
            main.write_all(b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01")
                .unwrap();
            drop(main);
            assert_eq!(recv.finish().status.code(), Some(1), "{case}");
        } else {
            let send = std::process::Command::new(multifd_tests::program::path())
                .args([
                    "send",
                    "--raw",
                    raw,
                    "--to",
                    &relay.address,
                    "--finish-timeout",
                    "5",
                ])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            if case == "killed" {
                // Not over TCP: its port may be another test's at once.
                recv.kill();
            } else {
                assert_eq!(recv.finish().status.code(), Some(1), "{case}");
            }
            let outcome = send.wait_with_output().unwrap();
            assert!(
                !outcome.status.success(),
                "{case} {unix}: the source takes it for a success"
            );
        }
        let output = relay.finish();
        assert_eq!(output.status.code(), Some(1), "{case} {unix}");
        assert!(!out.exists(), "{case} {unix}: a file is left");
    }
}

/// One migration of a running guest over the link: how long it took at the source, and what the
/// relays said.
fn over(link: &Link, tunnel: bool) -> (f64, Option<(Value, Value)>) {
    let machine = Machine {
        boot: true,
        filled: true,
        ram_mib: 256,
        netns: Some(link.near.clone()),
        ..Machine::default()
    };
    let to_machine = Machine {
        incoming: true,
        netns: Some(link.far.clone()),
        ..machine.clone()
    };
    let (mut source, mut target) = Qemu::start_pair(&machine, &to_machine);
    source.multifd(2, "none", "multifd");
    target.multifd(2, "none", "multifd");
    source.execute("cont", &json!({}));
    source.wait_serial(3);
    let listen = if tunnel {
        "tcp:127.0.0.1:0"
    } else {
        "tcp:10.77.0.2:0"
    };
    let address = target.listen(listen);
    let relays = tunnel.then(|| {
        let far = relay(Some(&link.far), "tcp:10.77.0.2:0", &address, &[]);
        let more = ["--compression", "zstd", "--checksum"];
        let near = relay(Some(&link.near), "tcp:127.0.0.1:0", &far.address, &more);
        (near, far)
    });
    source.migrate(relays.as_ref().map_or(&address, |(near, _)| &near.address));
    source.wait_completed();
    target.wait_completed();
    let said = relays.map(|(near, far)| (near.succeed(), far.succeed()));
    let ram = target.ram_bytes();
    assert!(ram == source.ram_bytes(), "through relays: {tunnel}");
    let info = source.execute("query-migrate", &json!({}));
    target.goes_on(count(&ram));
    (info["total-time"].as_f64().unwrap() / 1000.0, said)
}

/// Two relays make a compressed tunnel for QEMUs that send without compression.
#[test]
fn two_relays_cut_the_time_over_a_slow_link() {
    if program().is_none() || !netns::possible() {
        return;
    }
    let link = Link::new();
    link.limit(Some(100));
    let (direct, _) = over(&link, false);
    let (tunnelled, said) = over(&link, true);
    let (near, far) = said.unwrap();
    assert_eq!(near["outgoing_compression"], "zstd");
    assert_eq!(far["incoming_compression"], "zstd");
    let ratio = near["ratio"].as_f64().unwrap();
    println!(
        "direct {direct:.2} s, through the tunnel {tunnelled:.2} s, compression ratio {ratio:.2}"
    );
    assert!(ratio > 1.5, "{near}");
    assert!(
        direct / tunnelled >= 0.8 * ratio,
        "{direct:.2} s / {tunnelled:.2} s, ratio {ratio:.2}"
    );
}

/// What came out of a relay is what went in, to the byte, when packets choose their own method.
#[test]
fn whatever_method_each_packet_has_it_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (folder.path().join("raw"), folder.path().join("out"));
    let bytes = multifd_tests::qemu::seeded(96 << 20, 9);
    std::fs::write(&raw, &bytes).unwrap();
    let recv = Recv::start("tcp:127.0.0.1:0", &out, &["--require-checksum"]);
    let second = relay(
        None,
        "tcp:127.0.0.1:0",
        &recv.address,
        &["--require-checksum", "--checksum", "--channels", "1"],
    );
    let first = relay(
        None,
        "tcp:127.0.0.1:0",
        &second.address,
        &["--compression", "auto", "--checksum"],
    );
    let args = [
        "send",
        "--raw",
        raw.to_str().unwrap(),
        "--to",
        &first.address,
        "--compression",
        "qpl",
        "--channels",
        "3",
    ];
    let output = multifd_tests::program::run(&args);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = first.succeed();
    assert_eq!(said["incoming_compression"], "qpl");
    assert_eq!(said["outgoing_compression"], "auto");
    assert!(
        said["auto"]["choices"].as_array().unwrap().len() > 5,
        "{said}"
    );
    second.succeed();
    recv.succeed();
    assert!(extract(&out, "pc.ram") == bytes);
}
