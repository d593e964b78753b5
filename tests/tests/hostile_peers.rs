//! Hostile peers of the program: memory stays within what is stated, nothing waits for ever, no
//! wrong answer is silent.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_packet::{Compression, Flags, Geometry, InitPacket, RamFields, RamPacket, Uuid};
use multifd_tests::golden::{Golden, replay};
use multifd_tests::program::{Recv, json, path, run};
use multifd_transport_socket::{SocketOptions, SocketTransport};
use snapshot_steps::text;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A channel's first packet.
fn init(channel: u8) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let packet = InitPacket {
        uuid: Uuid::NIL,
        channel,
    };
    packet.encode(&mut bytes).unwrap();
    bytes
}

/// A packet with the first so many pages of the block `a`.
fn packet(flags: Flags, number: u64, pages: u64, payload: &[u8]) -> Vec<u8> {
    let geometry = Geometry::new(4096).unwrap();
    let mut bytes = vec![0; geometry.packet_len()];
    let offsets: Vec<u64> = (0..pages).map(|page| page * 4096).collect();
    let fields = RamFields {
        flags,
        payload_len: u32::try_from(payload.len()).unwrap(),
        packet_num: number,
        block: "a",
    };
    RamPacket::encode(&fields, geometry, &offsets, &[], &mut bytes).unwrap();
    bytes.extend(payload);
    bytes
}

/// A main connection: 1 MiB of RAM, two rounds, then `tail`.
fn main_connection(tail: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(
        [0x5145_564d_u32, 3]
            .iter()
            .flat_map(|word| word.to_be_bytes()),
    );
    out.extend(b"\x07\0\0\0\x04none\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    out.extend((1u64 << 20 | 4).to_be_bytes());
    out.extend(b"\x01a");
    out.extend((1u64 << 20).to_be_bytes());
    let end = [0x200u64, 0x10].map(u64::to_be_bytes).concat();
    out.extend(&end);
    out.extend(b"\x7e\0\0\0\x02\x03\0\0\0\x02");
    out.extend(&end);
    out.extend(b"\x7e\0\0\0\x02");
    out.extend(tail);
    out
}

const NO_DEVICES: &[u8] = b"\0\x06\0\0\0\x0e{\"devices\":[]}";

/// Plays connections to the listener at a Unix socket, each to its end.
fn play(socket: &Path, connections: &[Vec<u8>]) {
    let mut streams: Vec<_> = connections
        .iter()
        .map(|_| UnixStream::connect(socket).unwrap())
        .collect();
    std::thread::scope(|scope| {
        for (stream, bytes) in streams.iter_mut().zip(connections) {
            scope.spawn(move || {
                // It may hang up early: that is its good right.
                let _ = stream.write_all(bytes);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read(&mut [0]);
            });
        }
    });
}

/// The most memory a process has had, in bytes. It must live.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

/// Channels that each have their receiver keep a window of 32 MiB, and fill it.
fn windows(channels: u8) -> Vec<Vec<u8>> {
    // Two blocks of 128 KiB of one byte: 64 pages.
    let blocks: Vec<u8> = [((128u32 << 10) << 3) | 1 << 1]
        .map(|head| {
            let [a, b, c, _] = head.to_le_bytes();
            [a, b, c, b'A', a, b, c, b'A']
        })
        .concat();
    let packets = 140;
    let channel = |id: u8| {
        let first = u64::from(id) * (packets + 2);
        let mut out = [init(id), packet(Flags::sync(), first, 0, &[])].concat();
        for n in 0..packets {
            // A frame without a content size, and a window of 32 MiB; it goes on from packet to
            // packet.
            let head: &[u8] = if n == 0 {
                &[0x28, 0xb5, 0x2f, 0xfd, 0, 15 << 3]
            } else {
                &[]
            };
            out.extend(packet(
                Flags::data(Compression::Zstd),
                first + 1 + n,
                64,
                &[head, &blocks].concat(),
            ));
        }
        out.extend(packet(Flags::sync(), first + 1 + packets, 0, &[]));
        out
    };
    (0..channels).map(channel).collect()
}

#[test]
fn windows_of_decoders_stay_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    for (channels, budget, whole) in [
        (7u8, "256M", true),
        (9, "256M", false),
        (9, "289M", true),
        (30, "64M", false),
    ] {
        let socket = folder.path().join("s");
        let out = folder.path().join("vm.mapped");
        let listen = format!("unix:{}", text(&socket));
        let recv = Recv::start(
            &listen,
            &out,
            &["--force", "--max-ram", "1M", "--max-memory", budget],
        );
        let pid = recv.pid();
        let done = std::sync::atomic::AtomicBool::new(false);
        let (output, peak) = std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                let mut most = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    most = most.max(peak(pid));
                }
                most
            });
            let connections = [vec![main_connection(NO_DEVICES)], windows(channels)].concat();
            let playing = scope.spawn(move || play(&socket, &connections));
            let output = recv.finish();
            playing.join().unwrap();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            (output, watching.join().unwrap())
        });
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.success(),
            whole,
            "{channels} {budget}: {said}"
        );
        if !whole {
            assert!(
                said.contains("a zstd window: ") && said.contains("--max-memory"),
                "{said}"
            );
        }
        let mib: u64 = budget.trim_end_matches('M').parse().unwrap();
        let most = (mib + 64 + 2 * u64::from(channels)) << 20;
        assert!(
            peak <= most,
            "{channels} channels with {budget}: {} MiB",
            peak >> 20
        );
    }
}

#[test]
fn device_sections_are_held_once_and_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let out = folder.path().join("vm.mapped");
    // One section of 100 MiB, whose description fits it.
    let size = 100 << 20;
    let description = format!(
        "{{\"devices\":[{{\"name\":\"big\",\"instance_id\":0,\"fields\":[{{\"name\":\"data\",\"type\":\"buffer\",\"size\":{size}}}]}}]}}"
    );
    let mut tail = b"\x04\0\0\0\x07\x03big\0\0\0\0\0\0\0\x01".to_vec();
    tail.resize(tail.len() + size, 0x42);
    tail.extend(b"\x7e\0\0\0\x07\0\x06");
    tail.extend(u32::try_from(description.len()).unwrap().to_be_bytes());
    tail.extend(description.as_bytes());
    let channel = [
        init(0),
        packet(Flags::sync(), 0, 0, &[]),
        packet(Flags::sync(), 1, 0, &[]),
    ]
    .concat();
    let connections = [main_connection(&tail), channel];
    for (budget, whole) in [("256M", true), ("64M", false)] {
        let listen = format!("unix:{}", text(&socket));
        let recv = Recv::start(&listen, &out, &["--force", "--max-memory", budget]);
        let pid = recv.pid();
        let playing = std::thread::scope(|scope| {
            let playing = scope.spawn(|| play(&socket, &connections));
            let mut most = 0;
            while !playing.is_finished() {
                most = most.max(peak(pid));
            }
            most
        });
        let output = recv.finish();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), whole, "{budget}: {said}");
        if whole {
            assert!(
                playing < (size as u64) * 2 + (64 << 20),
                "{} MiB",
                playing >> 20
            );
            assert_eq!(json(&output)["device_sections_fit"], true);
        } else {
            assert!(
                said.contains("the device sections: ") && said.contains("--max-memory"),
                "{said}"
            );
        }
    }
}

#[test]
fn a_relay_whose_channels_say_nothing_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, target) = (folder.path().join("s"), folder.path().join("t"));
    let listener = UnixListener::bind(&target).unwrap();
    // A destination that ends every connection in order.
    std::thread::spawn(move || while listener.accept().is_ok() {});
    let half = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\x01".to_vec();
    for channels in [vec![init(0)], vec![init(0), init(1)]] {
        let relay = Recv::listening(
            None,
            &[
                "relay",
                "--listen",
                &format!("unix:{}", text(&socket)),
                "--to",
                &format!("unix:{}", text(&target)),
                "--timeout",
                "2",
                "--connect-timeout",
                "2",
                "--finish-timeout",
                "2",
            ],
        );
        let begun = Instant::now();
        play(&socket, &[vec![half.clone()], channels].concat());
        let output = relay.finish();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "no wait is without a deadline"
        );
    }
}

/// Replays a recording that was changed to `multifd recv`, and returns its end.
fn received(
    golden: &Golden,
    channels: &[Vec<u8>],
    main: &[u8],
    more: &[&str],
) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    let recv = Recv::start("tcp:127.0.0.1:0", &folder.path().join("vm.mapped"), more);
    let transport = SocketTransport::new(recv.address.parse().unwrap(), SocketOptions::default());
    let streams = replay(&transport, main, channels);
    let output = recv.finish();
    drop(streams);
    assert!(!golden.files.is_empty());
    output
}

#[test]
fn a_lost_packet_is_missed_with_and_without_a_number_of_channels() {
    let golden = Golden::load("none-2ch");
    let channels = golden.channels();
    // The first packet with contents of channel 0: after the init packet and a SYNC.
    let at = 64 + 1344;
    let len = 1344 + u32::from_be_bytes(channels[0][at + 20..at + 24].try_into().unwrap()) as usize;
    let mut lost = channels.clone();
    lost[0].drain(at..at + len);
    let mut copied = channels.clone();
    let other = copied[0][at..at + len].to_vec();
    copied[0].splice(at..at, other);
    for more in [[].as_slice(), &["--channels", "2"]] {
        let output = received(&golden, &lost, golden.main(), more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{more:?}: {said}");
        assert!(said.contains("packets were lost"), "{said}");
        let output = received(&golden, &copied, golden.main(), more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{more:?}: {said}");
        assert!(
            said.contains("which another RAM packet had before"),
            "{said}"
        );
        assert!(
            received(&golden, &channels, golden.main(), more)
                .status
                .success()
        );
    }
}

#[test]
fn device_sections_that_do_not_fit_their_description_are_told_as_verify_does() {
    let golden = Golden::load("none-2ch");
    let mut main = golden.main().to_vec();
    let at = main
        .windows(10)
        .rposition(|window| window == b"\"size\": 4}")
        .unwrap();
    main[at + 8] = b'5';
    let output = received(&golden, &golden.channels(), &main, &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("WARNING: the device sections"),
        "{said}"
    );
    assert_eq!(json(&output)["device_sections_fit"], false);
    // No RAM at all is no VM.
    let mut main = golden.main().to_vec();
    let total = main
        .windows(6)
        .position(|window| window == b"pc.ram")
        .unwrap()
        - 9;
    main[total..total + 8].copy_from_slice(&4u64.to_be_bytes());
    let output = received(&golden, &golden.channels(), &main, &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the guest's RAM is 0 bytes"), "{said}");
    // More than is allowed names the option that allows it.
    let output = received(
        &golden,
        &golden.channels(),
        golden.main(),
        &["--max-ram", "1M"],
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("more than the limit of 1048576 (--max-ram)"),
        "{said}"
    );
}

/// A monitor whose words would do something to a terminal.
#[test]
fn what_a_monitor_says_is_shown_tame() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let listener = UnixListener::bind(&socket).unwrap();
    let monitor = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"{\"QMP\": {}}\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next();
        stream.write_all(b"{\"return\": {}}\n").unwrap();
        lines.next();
        let wild = "{\"error\": {\"desc\": \"\\u001b[2J\\u202egnorw\\u2066\\u009b31m\"}}\n";
        stream.write_all(wild.as_bytes()).unwrap();
        lines.next();
    });
    let out = folder.path().join("vm.mapped");
    let output = run(&[
        "snapshot",
        "--json",
        "--qmp",
        text(&socket),
        "--out",
        text(&out),
    ]);
    monitor.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    for shown in [&output.stderr, &output.stdout] {
        let shown = String::from_utf8(shown.clone()).unwrap();
        let wild =
            |c: char| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{2069}').contains(&c));
        assert!(
            shown.contains("gnorw") && !shown.contains(wild),
            "{shown:?}"
        );
    }
    let error = json(&output)["error"].as_str().unwrap().to_owned();
    assert!(
        error.contains('\u{202e}'),
        "JSON escapes it and keeps it: {error:?}"
    );
}

#[test]
fn an_interrupt_is_called_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("vm.mapped");
    let mut child = Command::new(path())
        .args(["recv", "--listen", "tcp:127.0.0.1:0", "--out", text(&out)])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.starts_with("listening"));
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(said.trim(), "multifd: interrupted");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
