//! `--cpus` and `--nice` hold for every thread of the program.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_core::{MainTransport, Plain, Sender, SenderConfig, Transport};
use multifd_testing::guest;
use multifd_tests::program::Recv;
use multifd_transport_socket::{SocketOptions, SocketTransport};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Every thread's name, the processors it may run on, and its niceness.
fn threads(pid: u32) -> Vec<(String, String, i64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let read = |task: &Path| {
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let stat = std::fs::read_to_string(task.join("stat")).ok()?;
        let line = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        // The fields after the name, which stands in brackets: niceness is the 17th.
        let nice = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(16)?
            .parse()
            .ok()?;
        Some((line("Name")?, line("Cpus_allowed_list")?, nice))
    };
    tasks
        .filter_map(|task| read(&task.unwrap().path()))
        .collect()
}

#[test]
fn every_thread_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("vm.mapped");
    let more = [
        "--cpus",
        "0",
        "--nice",
        "7",
        "--channels",
        "2",
        "--timeout",
        "60",
    ];
    let recv = Recv::start("tcp:127.0.0.1:0", &out, &more);
    // A source that says which RAM blocks there are, opens its channels, and says no more.
    let transport = SocketTransport::new(recv.address.parse().unwrap(), SocketOptions::default());
    let mut main = transport.connect_main().unwrap();
    let block = b"\x06pc.ram\0\0\0\0\0\x01\0\0";
    let total = 0x1_0000_u64 | 0x04;
    main.write_all(b"QEVM\0\0\0\x03\x07\0\0\0\x02pc").unwrap();
    main.write_all(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04")
        .unwrap();
    main.write_all(&total.to_be_bytes()).unwrap();
    main.write_all(block).unwrap();
    main.write_all(&0x200_u64.to_be_bytes()).unwrap();
    let config = SenderConfig::default().channels(2);
    let _sender = Sender::start(
        guest("pc.ram", 16),
        &Plain,
        &transport as &dyn Transport,
        &config,
    )
    .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let found = loop {
        let found = threads(recv.pid());
        let receiving = found
            .iter()
            .filter(|thread| thread.0.starts_with("multifd-recv-"));
        if receiving.count() == 2 {
            break found;
        }
        assert!(Instant::now() < deadline, "{found:?}");
        std::thread::yield_now();
    };
    for (name, cpus, nice) in &found {
        assert_eq!((cpus.as_str(), *nice), ("0", 7), "{name}: {found:?}");
    }
    recv.kill();
}
