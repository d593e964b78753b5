//! The program over every kind of address and link: spread, limited, cut, inherited, proved.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_testing::Authority;
use multifd_tests::guest::contents;
use multifd_tests::netns::{self, Link};
use multifd_tests::pair::{Pair, ram};
use multifd_tests::program::{Recv, extract, json, path, run};
use multifd_tests::qemu::seeded;
use multifd_transport_socket::{Bandwidth, SocketListener, SocketOptions, SocketTransport};
use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn raw(folder: &Path, mib: usize) -> (PathBuf, Vec<u8>) {
    let raw = folder.join("raw");
    let bytes = seeded(mib << 20, 11);
    std::fs::write(&raw, &bytes).unwrap();
    (raw, bytes)
}

fn send(raw: &Path, more: &[&str]) -> Output {
    run(&[&["send", "--json", "--raw", raw.to_str().unwrap()], more].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(output: &Output) {
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn every_kind_of_address_and_several_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, bytes) = raw(folder.path(), 16);
    let out = folder.path().join("out");
    let unnamed = format!("unix:@multifd-links-{}", std::process::id());
    for (listen, from) in [
        ("tcp:[::1]:0", &[][..]),
        ("tcp:localhost:0", &[]),
        (&unnamed, &[]),
        ("tcp:127.0.0.1:0", &["--from", "127.0.0.7", "--from", "lo"]),
    ] {
        let recv = Recv::start(listen, &out, &["--force"]);
        let to = ["--to", recv.address.as_str(), "--channels", "3"];
        succeed(&send(&raw, &[&to[..], from].concat()));
        recv.succeed();
        assert!(extract(&out, "pc.ram") == bytes, "{listen}");
    }
    // Two addresses, each with its share of the channels.
    let mut recv = Recv::start(
        "tcp:127.0.0.1:0",
        &out,
        &["--force", "--listen", "tcp:127.0.0.2:0"],
    );
    let second = recv.next_line();
    let second = second.strip_prefix("listening on ").unwrap();
    let to = [
        "--to",
        recv.address.as_str(),
        "--to",
        second,
        "--channels",
        "8",
    ];
    succeed(&send(&raw, &to));
    assert_eq!(recv.succeed()["channels"].as_array().unwrap().len(), 8);
}

/// What a service manager does: it listens, and the program inherits that; and connections that are
/// there already.
#[test]
fn sockets_are_inherited() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, bytes) = raw(folder.path(), 8);
    let out = folder.path().join("out");
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listening.local_addr().unwrap());
    let number = listening.as_raw_fd();
    // The descriptor is inherited as number 3; the shell becomes the program, so that its process
    // id is the program's.
    let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
    rustix::io::fcntl_setfd(&listening, rustix::io::FdFlags::empty()).unwrap();
    let recv = Command::new("sh")
        .args(["-c", &format!("exec 3<&{number}; {script}"), "sh"])
        .arg(path())
        .args(["recv", "--json", "--listen", "fd:systemd", "--out"])
        .arg(&out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    succeed(&send(&raw, &["--to", &address]));
    let output = recv.wait_with_output().unwrap();
    succeed(&output);
    assert!(text(&output.stderr).contains(&format!("listening on {address}")));
    assert!(extract(&out, "pc.ram") == bytes);
    // It listens on.
    drop(std::net::TcpStream::connect(listening.local_addr().unwrap()).unwrap());
    let output = run(&["recv", "--listen", "fd:systemd", "--out", "x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("LISTEN_FDS are not set"));
}

#[test]
fn a_limit_on_bandwidth_holds_and_can_be_changed_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, _) = raw(folder.path(), 200);
    let out = folder.path().join("out");
    for channels in ["1", "8"] {
        let recv = Recv::start("tcp:127.0.0.1:0", &out, &["--force", "--no-digest"]);
        let to = ["--to", recv.address.as_str(), "--channels", channels];
        let output = send(&raw, &[&to[..], &["--max-bandwidth", "20M"]].concat());
        succeed(&output);
        recv.succeed();
        let said = json(&output);
        #[allow(clippy::cast_precision_loss)] // Megabytes.
        let bytes = said["total"]["wire_bytes"].as_u64().unwrap() as f64;
        let rate = bytes / said["channel_seconds"].as_f64().unwrap();
        let ratio = rate / f64::from(20 << 20);
        println!(
            "{channels} channels: {ratio:.3} of the limit over {:.2} s",
            said["channel_seconds"]
        );
        assert!(
            (0.95..=1.05).contains(&ratio),
            "{channels} channels: {ratio:.3} of the limit"
        );
    }
    // At a rate that would take for ever, until it is lifted.
    let bytes = seeded(32 << 20, 12);
    let options = SocketOptions::default();
    let mut listener = SocketListener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), options).unwrap();
    let bandwidth = Bandwidth::limited(1000);
    let transport = SocketTransport::new(listener.address().unwrap(), options)
        .with_bandwidth(bandwidth.clone());
    let (sent, received) = std::thread::scope(|scope| {
        let running = scope.spawn(|| Pair::default().run(&ram(&bytes), &transport, &mut listener));
        bandwidth.set(None);
        running.join().unwrap()
    });
    sent.unwrap();
    assert!(contents(&received.unwrap().snapshot.ram.blocks()[0]) == bytes);
}

/// Bytes that have gone over a link.
fn passed(link: &Link) -> u64 {
    let output = netns::command(Some(&link.far), OsStr::new("cat"))
        .arg("/sys/class/net/wire/statistics/rx_bytes")
        .output()
        .unwrap();
    text(&output.stdout).trim().parse().unwrap()
}

#[test]
fn a_link_that_goes_down_ends_both_ends() {
    if !netns::possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (raw, _) = raw(folder.path(), 64);
    let link = Link::new();
    link.limit(Some(100));
    let files = folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    let out = files.join("out");
    let args = [
        "recv",
        "--listen",
        "tcp:10.77.0.2:0",
        "--timeout",
        "2",
        "--out",
    ];
    let recv = Recv::listening(
        Some(&link.far),
        &[&args[..], &[out.to_str().unwrap()]].concat(),
    );
    let sending = netns::command(Some(&link.near), OsStr::new(path()))
        .args([
            "send",
            "--json",
            "--timeout",
            "2",
            "--finish-timeout",
            "2",
            "--raw",
        ])
        .arg(&raw)
        .args(["--to", &recv.address, "--channels", "4"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while passed(&link) < 2 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing passes");
        std::thread::yield_now();
    }
    link.set_up(false);
    for (side, output) in [
        ("send", sending.wait_with_output().unwrap()),
        ("recv", recv.finish()),
    ] {
        assert_eq!(
            output.status.code(),
            Some(1),
            "{side}: {}",
            text(&output.stderr)
        );
        let error = json(&output)["error"].as_str().unwrap().to_owned();
        assert!(
            error.contains("nothing moved for 2s") || error.contains("nothing came for 2s"),
            "{side}: {error}"
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!(
        std::fs::read_dir(&files).unwrap().count(),
        0,
        "a file is left"
    );
}

/// Source, relay, relay, destination: in the middle with TLS and a secret, at the ends without.
#[test]
fn relays_prove_who_they_are_to_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, bytes) = raw(folder.path(), 16);
    let [out, certs, secret] = ["out", "certs", "secret"].map(|name| folder.path().join(name));
    Authority::new().fill(&certs, &["127.0.0.1"]);
    std::fs::write(&secret, "a secret of both relays\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let [creds, secret] = [&certs, &secret].map(|path| path.to_str().unwrap());
    let both = ["--listen-tls-creds", creds, "--listen-secret-file", secret];
    let recv = Recv::start("tcp:127.0.0.1:0", &out, &[]);
    let relay = |to: &str, more: &[&str]| {
        Recv::listening(
            None,
            &[&["relay", "--listen", "tcp:127.0.0.1:0", "--to", to], more].concat(),
        )
    };
    let far = relay(&recv.address, &both);
    let near = relay(
        &far.address,
        &[
            "--to-tls-creds",
            creds,
            "--to-secret-file",
            secret,
            "--compression",
            "zstd",
        ],
    );
    succeed(&send(&raw, &["--to", &near.address]));
    near.succeed();
    far.succeed();
    recv.succeed();
    assert!(extract(&out, "pc.ram") == bytes);

    // Without the secret the far relay takes nothing.
    let recv = Recv::start("tcp:127.0.0.1:0", &out, &["--force", "--wait", "5"]);
    let far = relay(&recv.address, &[&both[..], &["--wait", "2"]].concat());
    let near = relay(&far.address, &["--to-tls-creds", creds]);
    assert_eq!(send(&raw, &["--to", &near.address]).status.code(), Some(1));
    for (relay, expected) in [
        (near, ""),
        (far, "not by showing that it knows the shared secret"),
    ] {
        let output = relay.finish();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains(expected),
            "{}",
            text(&output.stderr)
        );
    }
    assert_eq!(recv.finish().status.code(), Some(1));
}

#[test]
fn listening_beyond_this_machine_without_tls_is_warned_of_loudly() {
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs");
    Authority::new().fill(&certs, &["127.0.0.1"]);
    let creds = ["--tls-creds", certs.to_str().unwrap()];
    let out = folder.path().join("out");
    for (listen, more, warns) in [
        ("tcp::0", &[][..], true),
        ("tcp:0.0.0.0:0", &["--allow", "10.0.0.0/8"], true),
        ("tcp:0.0.0.0:0", &["--quiet"], true),
        ("tcp::0", &creds, false),
        ("tcp:127.0.0.1:0", &[], false),
    ] {
        let args = [
            "recv",
            "--wait",
            "1",
            "--listen",
            listen,
            "--out",
            out.to_str().unwrap(),
        ];
        let output = run(&[&args[..], more].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert_eq!(
            said.contains("WARNING: listening beyond this machine without TLS"),
            warns,
            "{listen}: {said}"
        );
        assert!(
            said.contains("no main connection of a migration came within 1s"),
            "{said}"
        );
    }
}
