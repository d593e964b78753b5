//! TLS on every connection: with a real QEMU, both ways, and with peers that do not prove who they
//! are.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_testing::Authority;
use multifd_tests::guest::sha256;
use multifd_tests::program::{Recv, extract, json, run};
use multifd_tests::qemu::{Machine, Qemu, UUID, program, seeded};
use serde_json::json;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Output;

fn tls(qemu: &mut Qemu, folder: &Path, endpoint: &str) {
    let creds = json!({
        "qom-type": "tls-creds-x509", "id": "tls0", "dir": folder, "endpoint": endpoint, "verify-peer": true,
    });
    qemu.execute("object-add", &creds);
    qemu.execute("migrate-set-parameters", &json!({ "tls-creds": "tls0" }));
}

/// A folder with certificates of an authority.
fn certificates(folder: &Path, name: &str) -> PathBuf {
    let certificates = folder.join(name);
    Authority::new().fill(&certificates, &["127.0.0.1", "localhost"]);
    certificates
}

#[test]
fn with_a_real_qemu_both_ways() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let certs = certificates(folder.path(), "certs");
    let creds = certs.to_str().unwrap();
    for (compression, channels) in [("none", 2), ("zstd", 4), ("none", 1)] {
        let mut source = Qemu::start(&Machine::default());
        source.multifd(channels, compression, "multifd");
        tls(&mut source, &certs, "client");
        let out = folder.path().join("vm.mapped");
        let recv = Recv::start("tcp:127.0.0.1:0", &out, &["--force", "--tls-creds", creds]);
        source.migrate(&recv.address);
        source.wait_completed();
        let said = recv.succeed();
        assert_eq!(said["compression"], compression);
        assert_eq!(
            said["channels"].as_array().unwrap().len(),
            usize::from(channels)
        );
        assert_eq!(
            sha256(&extract(&out, "pc.ram")),
            source.ram_sha256(),
            "{compression} from QEMU"
        );
        let expected = source.ram_bytes();
        drop(source);

        let mut target = Qemu::start(&Machine {
            incoming: true,
            ..Machine::default()
        });
        target.multifd(channels, compression, "multifd");
        tls(&mut target, &certs, "server");
        let address = target.listen("tcp:127.0.0.1:0");
        let channels = channels.to_string();
        let args = [
            "send",
            out.to_str().unwrap(),
            "--to",
            &address,
            "--uuid",
            UUID,
            "--tls-creds",
            creds,
        ];
        let more = ["--channels", &channels, "--compression", compression];
        let output = run(&[&args[..], &more].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        target.wait_completed();
        assert!(target.ram_bytes() == expected, "{compression} into QEMU");
    }
}

/// Sends a raw image to a `recv`, each with options of its own.
fn between(folder: &Path, ours: &[&str], theirs: &[&str]) -> (Output, Output, PathBuf) {
    let (raw, out) = (folder.join("raw"), folder.join("out"));
    if !raw.exists() {
        std::fs::write(&raw, seeded(32 << 20, 4)).unwrap();
    }
    let recv = [
        &["--force", "--no-digest", "--timeout", "2", "--wait", "4"],
        theirs,
    ]
    .concat();
    let recv = Recv::start("tcp:127.0.0.1:0", &out, &recv);
    let send = [
        "send",
        "--json",
        "--raw",
        raw.to_str().unwrap(),
        "--to",
        &recv.address,
        "--finish-timeout",
        "5",
    ];
    let outcome = run(&[&send[..], ours].concat());
    (outcome, recv.finish(), out)
}

#[test]
fn every_method_and_number_of_channels_goes_through() {
    let folder = tempfile::tempdir().unwrap();
    let certs = certificates(folder.path(), "certs");
    let creds = ["--tls-creds", certs.to_str().unwrap()];
    for more in [
        &["--channels", "1"][..],
        &["--channels", "8", "--compression", "zlib"],
        &["--compression", "auto", "--checksum"],
        &["--tls-hostname", "localhost"],
    ] {
        let (sent, received, out) = between(folder.path(), &[&creds[..], more].concat(), &creds);
        assert!(
            sent.status.success(),
            "{more:?}: {}",
            String::from_utf8_lossy(&sent.stderr)
        );
        assert!(
            received.status.success(),
            "{}",
            String::from_utf8_lossy(&received.stderr)
        );
        assert_eq!(
            json(&sent)["total"]["normal_pages"],
            json(&received)["total"]["normal_pages"]
        );
        assert!(extract(&out, "pc.ram") == seeded(32 << 20, 4), "{more:?}");
    }
}

#[test]
fn who_does_not_prove_who_it_is_stays_out() {
    let folder = tempfile::tempdir().unwrap();
    let right = certificates(folder.path(), "right");
    let wrong = certificates(folder.path(), "wrong");
    // Trusts the right authority, and has no certificate of its own.
    let nameless = folder.path().join("nameless");
    std::fs::create_dir(&nameless).unwrap();
    std::fs::copy(right.join("ca-cert.pem"), nameless.join("ca-cert.pem")).unwrap();
    let [right, wrong, nameless] = [&right, &wrong, &nameless].map(|path| path.to_str().unwrap());
    let cases: [(&[&str], &[&str], &str); 6] = [
        (
            &["--tls-creds", wrong],
            &["--tls-creds", right],
            "BadSignature",
        ),
        (
            &["--tls-creds", nameless],
            &["--tls-creds", right],
            "a certificate",
        ),
        (
            &["--tls-creds", right, "--tls-hostname", "elsewhere"],
            &["--tls-creds", right],
            "not valid for name",
        ),
        (&[], &["--tls-creds", right], "does not speak TLS"),
        (&["--tls-creds", right], &[], "a TLS handshake"),
        (
            &["--tls-creds", right, "--zero-copy", "on"],
            &["--tls-creds", right],
            "without a copy under TLS",
        ),
    ];
    for (ours, theirs, expected) in cases {
        let (sent, received, out) = between(folder.path(), ours, theirs);
        let said = [&sent, &received]
            .map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
            .concat();
        assert_eq!(sent.status.code(), Some(1), "{ours:?} {theirs:?}: {said}");
        assert_eq!(
            received.status.code(),
            Some(1),
            "{ours:?} {theirs:?}: {said}"
        );
        assert!(said.contains(expected), "{ours:?} {theirs:?}: {said}");
        assert!(!out.exists(), "{ours:?} {theirs:?}: a file is left");
    }
    // A client without a certificate is let in where that is allowed.
    let theirs = ["--tls-creds", right, "--tls-any-client"];
    let (sent, received, _) = between(folder.path(), &["--tls-creds", nameless], &theirs);
    assert!(sent.status.success() && received.status.success());
}

#[test]
fn a_stranger_that_comes_first_does_not_keep_the_peer_out() {
    let folder = tempfile::tempdir().unwrap();
    let certs = certificates(folder.path(), "certs");
    let (raw, out) = (folder.path().join("raw"), folder.path().join("out"));
    std::fs::write(&raw, seeded(8 << 20, 4)).unwrap();
    let creds = ["--tls-creds", certs.to_str().unwrap()];
    let recv = Recv::start("tcp:127.0.0.1:0", &out, &creds);
    let address = recv.address.trim_start_matches("tcp:").to_owned();
    let mut stranger = TcpStream::connect(&address).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(TcpStream::connect(&address).unwrap());
    let send = [
        "send",
        "--raw",
        raw.to_str().unwrap(),
        "--to",
        &recv.address,
    ];
    let output = run(&[&send[..], &creds].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    recv.succeed();
    assert!(extract(&out, "pc.ram") == seeded(8 << 20, 4));
}

#[test]
fn files_that_are_missing_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let certs = certificates(folder.path(), "certs");
    std::fs::remove_file(certs.join("server-key.pem")).unwrap();
    let out = folder.path().join("out");
    let args = [
        "recv",
        "--listen",
        "tcp:127.0.0.1:0",
        "--out",
        out.to_str().unwrap(),
        "--tls-creds",
    ];
    let output = run(&[&args[..], &[certs.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("server-key.pem"), "{said}");
}
