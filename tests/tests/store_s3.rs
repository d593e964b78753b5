//! Stores on a real S3 server, over connections that fail.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::RamBlock;
use multifd_tests::mapped;
use multifd_tests::object_server::{BUCKET, ObjectServer};
use multifd_tests::program::{json, path};
use multifd_tests::proxy::{Fault, Proxy};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that neither compress nor repeat.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// A guest of 32 MiB, half of it noise: two packs and more.
fn image(folder: &Path, seed: u64) -> PathBuf {
    let block = RamBlock::anonymous("pc.ram", 32 << 20, 4096).unwrap();
    let noise = noise(16 << 20, seed);
    block
        .region(4 << 20, noise.len())
        .unwrap()
        .copy_from(&noise);
    let path = folder.join(format!("image{seed}"));
    mapped::create(&path, block);
    path
}

fn run(variables: &[(&'static str, String)], args: &[&str]) -> Output {
    Command::new(path())
        .args(args)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeed(variables: &[(&'static str, String)], args: &[&str]) -> Output {
    let output = run(variables, args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_store_in_a_bucket_from_its_first_snapshot_to_its_last() {
    let server = ObjectServer::start();
    let variables = server.variables(None);
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (image(folder.path(), 1), image(folder.path(), 2));
    let store = format!("s3://{BUCKET}/some/prefix");
    let name = |name: &str| format!("store:{store}#{name}");
    let first = json(&succeed(
        &variables,
        &["store", "import", "--json", text(&one), &name("one")],
    ));
    assert!(first["new_bytes"].as_u64().unwrap() > 16 << 20, "{first}");
    let again = json(&succeed(
        &variables,
        &["store", "import", "--json", text(&one), &name("same")],
    ));
    assert_eq!(again["new_bytes"], 0);
    succeed(
        &variables,
        &["store", "import", "-q", text(&two), &name("two")],
    );
    // A name that is taken.
    let refused = run(
        &variables,
        &["store", "import", "-q", text(&two), &name("one")],
    );
    assert!(said(&refused).contains("already"), "{}", said(&refused));
    let list = json(&succeed(&variables, &["store", "ls", "--json", &store]));
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 3);
    succeed(&variables, &["verify", &name("one")]);
    let out = folder.path().join("out");
    succeed(
        &variables,
        &["store", "export", "-q", &name("two"), "--out", text(&out)],
    );
    succeed(&variables, &["diff", text(&out), text(&two)]);
    // To a folder, and back under another name: nothing is new.
    let local = folder.path().join("local");
    succeed(
        &variables,
        &["store", "copy", "-q", &name("two"), text(&local)],
    );
    let from = format!("store:{}#two", text(&local));
    let back = ["store", "copy", "--json", &from, &store, "--name", "back"];
    assert_eq!(json(&succeed(&variables, &back))["new_bytes"], 0);
    for gone in ["two", "back"] {
        succeed(&variables, &["store", "rm", &name(gone)]);
    }
    let report = json(&succeed(&variables, &["store", "gc", "--json", &store]));
    assert!(
        report["removed_bytes"].as_u64().unwrap() > 15 << 20,
        "{report}"
    );
    succeed(&variables, &["verify", &name("same")]);
    for gone in ["one", "same"] {
        succeed(&variables, &["store", "rm", &name(gone)]);
    }
    succeed(&variables, &["store", "gc", &store]);
    let stats = json(&succeed(&variables, &["store", "stats", "--json", &store]));
    assert_eq!(
        (&stats["packs"], &stats["snapshots"]),
        (&0.into(), &0.into())
    );
    let wrong = [&variables[..], &[("AWS_SECRET_ACCESS_KEY", "wrong".into())]].concat();
    let refused = run(&wrong, &["store", "ls", &store]);
    assert!(
        !refused.status.success() && said(&refused).contains("s3://"),
        "{}",
        said(&refused)
    );
}

#[test]
fn connections_that_break_in_the_middle_are_tried_again() {
    let server = ObjectServer::start();
    let folder = tempfile::tempdir().unwrap();
    let one = image(folder.path(), 1);
    // Of the first connections, every other one breaks: at once, in a request, in an answer.
    let proxy = Proxy::start(&server.address, |number| match number {
        1 => Fault::Reset(0),
        3 => Fault::Reset(100_000),
        5 => Fault::HalfClose(3_000_000),
        _ => Fault::None,
    });
    let mut variables = server.variables(Some(&proxy.address));
    // Each request has a connection of its own, or the faults would come when none is made.
    variables.push(("AWS_POOL_MAX_IDLE_PER_HOST", "0".into()));
    let store = format!("s3://{BUCKET}");
    let name = format!("store:{store}#one");
    succeed(&variables, &["store", "import", "-q", text(&one), &name]);
    succeed(&server.variables(None), &["verify", &name]);
}

/// A server that answers the first requests as one that is overloaded, and then passes on.
fn overloaded(target: &str, answers: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let proxy = Proxy::start(target, |_| Fault::None);
    std::thread::spawn(move || {
        let target = proxy.address.trim_start_matches("tcp:").to_owned();
        for near in listener.incoming() {
            let Ok(mut near) = near else { continue };
            let number = seen.fetch_add(1, Ordering::SeqCst);
            if number < answers {
                let status = [
                    "503 Slow Down",
                    "500 Internal Server Error",
                    "429 Too Many Requests",
                ];
                let mut request = [0; 4096];
                let _ = near.read(&mut request);
                let head = format!(
                    "HTTP/1.1 {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                    status[number % status.len()]
                );
                let _ = near.write_all(head.as_bytes());
                continue;
            }
            let Ok(far) = std::net::TcpStream::connect(&target) else {
                continue;
            };
            for (mut from, mut to) in [
                (near.try_clone().unwrap(), far.try_clone().unwrap()),
                (far, near),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    (address, count)
}

#[test]
fn a_server_that_is_overloaded_is_asked_again_later() {
    let server = ObjectServer::start();
    let folder = tempfile::tempdir().unwrap();
    let one = image(folder.path(), 1);
    let (address, count) = overloaded(&server.address, 14);
    let mut variables = server.variables(Some(&address));
    variables.push(("AWS_POOL_MAX_IDLE_PER_HOST", "0".into()));
    let name = format!("store:s3://{BUCKET}#one");
    succeed(&variables, &["store", "import", "-q", text(&one), &name]);
    assert!(count.load(Ordering::SeqCst) > 14);
    succeed(&server.variables(None), &["verify", &name]);
}

#[test]
fn a_server_that_never_answers_is_an_error_and_leaves_no_snapshot() {
    let server = ObjectServer::start();
    let folder = tempfile::tempdir().unwrap();
    let one = image(folder.path(), 1);
    let store = format!("s3://{BUCKET}");
    let name = format!("store:{store}#one");
    succeed(
        &server.variables(None),
        &[
            "store",
            "import",
            "-q",
            text(&one),
            &format!("{name}-before"),
        ],
    );
    // The store is found, and its packs are listed; then nothing moves.
    let proxy = Proxy::start(&server.address, |number| match number {
        0..4 => Fault::None,
        _ => Fault::Unaccepted,
    });
    let mut variables = server.variables(Some(&proxy.address));
    variables.extend([
        ("AWS_POOL_MAX_IDLE_PER_HOST", "0".to_owned()),
        ("AWS_TIMEOUT", "1s".to_owned()),
    ]);
    let two = image(folder.path(), 2);
    let patience = ["--retry-timeout", "2"];
    let output = run(
        &variables,
        &[&["store", "import", "-q", text(&two), &name], &patience[..]].concat(),
    );
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains(&store), "{}", said(&output));
    let list = json(&succeed(
        &server.variables(None),
        &["store", "ls", "--json", &store],
    ));
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 1, "{list}");
    // What was there before is as good as ever.
    succeed(
        &server.variables(None),
        &["verify", &format!("{name}-before")],
    );
}

#[test]
fn a_mount_ends_though_its_reader_waits_for_a_server_that_is_silent() {
    let server = ObjectServer::start();
    let folder = tempfile::tempdir().unwrap();
    let one = image(folder.path(), 1);
    let store = format!("s3://{BUCKET}");
    let name = format!("store:{store}#one");
    succeed(
        &server.variables(None),
        &["store", "import", "-q", text(&one), &name],
    );
    // The server answers until the mount is there.
    let silent = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&silent);
    let proxy = Proxy::start(&server.address, move |_| {
        if seen.load(Ordering::SeqCst) {
            Fault::Unaccepted
        } else {
            Fault::None
        }
    });
    let mut variables = server.variables(Some(&proxy.address));
    variables.push(("AWS_POOL_MAX_IDLE_PER_HOST", "0".into()));
    let point = folder.path().join("mnt");
    std::fs::create_dir(&point).unwrap();
    let mut mount = Command::new(path())
        .args(["mount", &store, text(&point)])
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(mount.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with("mounted at "), "{line}");
    let file = point.join("one/memory");
    let opened = File::open(&file).unwrap();
    silent.store(true, Ordering::SeqCst);
    let mut reader = Command::new("cat")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It waits in the kernel.
    let stat = format!("/proc/{}/wchan", reader.id());
    let end = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(&stat).is_ok_and(|at| at.contains("wait") || at.contains("fuse"))
    {
        assert!(
            reader.try_wait().unwrap().is_none(),
            "it has read what it wanted"
        );
        assert!(Instant::now() < end, "the reader does not wait");
    }
    let sent = Command::new("kill").arg(mount.id().to_string()).status();
    assert!(sent.unwrap().success());
    let end = Instant::now() + PATIENCE;
    while mount.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the mount goes on");
        std::thread::yield_now();
    }
    assert_eq!(mount.wait().unwrap().code(), Some(0));
    assert!(!reader.wait().unwrap().success());
    assert!(std::fs::read_dir(&point).unwrap().next().is_none());
    drop(opened);
}
