//! Sources that break, stall, lie or vanish: each is a clear error within its deadline, and nothing
//! is left behind.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fault_cases;

use fault_cases::{Case, Source, cases};
use multifd_core::{CancelHandle, MainConnection, MainListener, Progress};
use multifd_qemu::{Limits, ReceiveOptions, receive};
use multifd_tests::golden::Golden;
use multifd_tests::program::{Recv, json};
use multifd_transport_socket::{SocketListener, SocketOptions, SocketStream, SocketTransport};
use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connects as QEMU would, says it all, and leaves the connections open or not.
fn play(transport: &SocketTransport, source: &Source) -> Vec<SocketStream> {
    let count = source.channels.len() + 1;
    let mut streams: Vec<_> = (0..count).map(|_| transport.connect().unwrap()).collect();
    std::thread::scope(|scope| {
        let all = std::iter::once(&source.main).chain(&source.channels);
        for (stream, bytes) in streams.iter_mut().zip(all) {
            scope.spawn(move || {
                // A destination that hangs up early is what is tested here.
                let _ = stream.write_all(bytes);
                if !source.hold {
                    let _ = stream.end_writing();
                }
            });
        }
    });
    streams
}

fn socket_options() -> SocketOptions {
    SocketOptions::default()
        .connect(Duration::from_millis(400))
        .stall(Duration::from_millis(400))
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Receives with the library, and returns the error.
fn refused(case: &Case) -> String {
    let mut listener =
        SocketListener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), socket_options()).unwrap();
    let transport = SocketTransport::new(listener.address().unwrap(), SocketOptions::default());
    std::thread::scope(|scope| {
        let player = scope.spawn(|| play(&transport, &case.source));
        let cancel = CancelHandle::default();
        let outcome = listener
            .accept_main()
            .map_err(|e| e.to_string())
            .and_then(|mut main| {
                let _guard = cancel.also_unblock(main.connection().read_unblock_handle().unwrap());
                let options = ReceiveOptions::default()
                    .channels(case.pinned)
                    .progress(Arc::new(Progress::new(socket_options().stall)))
                    .cancel(cancel.clone())
                    .limits(Limits::default().ram_bytes(1 << 30));
                receive(&mut main, &mut listener, options).map_err(|e| e.to_string())
            });
        // The source's connections end only now, if it holds them.
        drop(listener);
        let Err(error) = outcome else {
            panic!("{}: was taken", case.name)
        };
        drop(player.join().unwrap());
        error
    })
}

#[test]
fn every_fault_is_a_clear_error_and_leaves_nothing() {
    let cases = cases();
    assert!(cases.len() > 50);
    let count = || (entries("/proc/self/task"), entries("/proc/self/fd"));
    let before = count();
    let mut wrong = Vec::new();
    for case in &cases {
        let begun = Instant::now();
        let error = refused(case);
        // Which of two is noticed first can be a matter of timing.
        if case.expected.is_empty() || !case.expected.split('|').any(|one| error.contains(one)) {
            wrong.push(format!(
                "{}: {error} (expected {:?})",
                case.name, case.expected
            ));
        }
        // A thread that has been joined is listed for a moment longer.
        while count() != before && begun.elapsed() < Duration::from_secs(30) {
            std::thread::yield_now();
        }
        assert_eq!(
            count(),
            before,
            "{}: threads or descriptors are left",
            case.name
        );
        // Twice the deadline, and time for a busy machine: a hang would be for ever.
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{}: hung",
            case.name
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    program_leaves_no_file(&cases);
    interrupted_program_leaves_no_file();
}

/// The same with the program: it fails, says why, and leaves no file. (One test: the counts above
/// are the process's.)
fn program_leaves_no_file(cases: &[Case]) {
    for case in cases.iter().step_by(6) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("vm.mapped");
        let pinned = case.pinned.map(|n| n.to_string());
        let mut more = vec!["--timeout", "1", "--connect-timeout", "1"];
        more.extend(pinned.iter().flat_map(|n| ["--channels", n.as_str()]));
        let recv = Recv::start("tcp:127.0.0.1:0", &out, &more);
        let transport =
            SocketTransport::new(recv.address.parse().unwrap(), SocketOptions::default());
        let streams = play(&transport, &case.source);
        let output = recv.finish();
        drop(streams);
        assert_eq!(output.status.code(), Some(1), "{}", case.name);
        let said = json(&output);
        assert_eq!(said["ok"], false, "{}", case.name);
        assert!(!said["error"].as_str().unwrap().is_empty());
        assert_eq!(
            entries(folder.path().to_str().unwrap()),
            0,
            "{}: a file is left",
            case.name
        );
    }
}

fn interrupted_program_leaves_no_file() {
    let golden = Golden::load("none-2ch");
    for connected in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let recv = Recv::start("tcp:127.0.0.1:0", &folder.path().join("vm.mapped"), &[]);
        let transport =
            SocketTransport::new(recv.address.parse().unwrap(), SocketOptions::default());
        let source = Source {
            main: golden.main()[..2000].to_vec(),
            channels: golden.channels(),
            hold: true,
        };
        let streams = connected.then(|| play(&transport, &source));
        let killed = Command::new("kill")
            .args(["-INT", &recv.pid().to_string()])
            .status()
            .unwrap();
        assert!(killed.success());
        let output = recv.finish();
        drop(streams);
        assert_eq!(
            output.status.code(),
            Some(130),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(json(&output)["error"], "interrupted");
        assert_eq!(
            entries(folder.path().to_str().unwrap()),
            0,
            "a file is left"
        );
    }
}
