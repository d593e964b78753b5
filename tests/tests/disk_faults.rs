//! Disks that are full, files that may not grow, writes that fail, and death at any moment: never a
//! file that looks whole.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_tests::golden::Golden;
use multifd_tests::program::{path, run};
use multifd_transport_socket::{SocketOptions, SocketTransport};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A folder on a disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Starts a shell script in which `$1` is the program and `$2` a folder; the migration is replayed
/// to the first address it says it listens on. Returns the exit status and what else it said.
fn replay_into(script: &str, folder: &Path) -> (Option<i32>, String) {
    let (mut child, mut stderr) = listen(script, folder);
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

fn listen(script: &str, folder: &Path) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(path())
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("listening on ")
        .unwrap_or_else(|| {
            let mut rest = line.clone();
            stderr.read_to_string(&mut rest).unwrap();
            panic!("{rest}")
        });
    let transport = SocketTransport::new(address.parse().unwrap(), SocketOptions::default());
    let golden = Golden::load("none-2ch");
    std::thread::spawn(move || drop(golden.replay(&transport)));
    (child, stderr)
}

const RECV: &str = "\"$1\" recv --listen tcp:127.0.0.1:0 --out \"$2/vm.mapped\"";

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_full_disk_is_an_error_and_leaves_no_file() {
    let folder = folder();
    // In a mount namespace of its own; what is left in the folder is listed at the end.
    let script = format!(
        "exec unshare -m sh -c 'mount -t tmpfs -o size=600k none \"$2\" || {{ echo no mount >&2; exit 77; }}
         {RECV}; status=$?; ls -A \"$2\" >&2; exit $status' sh \"$1\" \"$2\""
    );
    let probe = Command::new("unshare").args(["-m", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "only root may mount, and CI is to be root"
        );
        eprintln!("SKIPPED: only root may mount a small disk");
        return;
    }
    // Told by the announced size, before anything is copied; by the disk, if that is not wanted.
    for (more, expected) in [
        ("", "free, and it has 16.51 MiB"),
        (" --no-space-check", "writing"),
    ] {
        let script = script.replace("vm.mapped\"", &format!("vm.mapped\"{more}"));
        let (status, said) = replay_into(&script, folder.path());
        assert_eq!(status, Some(1), "{said}");
        let last = said.lines().last().unwrap();
        assert!(
            last.starts_with("multifd: ") && last.contains("No space left on device"),
            "{said}"
        );
        assert!(
            last.contains("/vm.mapped: ") && last.contains(expected),
            "{said}"
        );
    }
    // With room set aside first, that fails before anything is written.
    let script = script.replace("vm.mapped\"", "vm.mapped\" --preallocate --no-space-check");
    let (status, said) = replay_into(&script, folder.path());
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("setting aside") && said.contains("No space left on device"),
        "{said}"
    );
}

#[test]
fn a_file_that_may_not_grow_is_an_error_and_leaves_no_file() {
    let folder = folder();
    let (status, said) = replay_into(&format!("ulimit -f 1000; {RECV}"), folder.path());
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("File too large"), "{said}");
    assert!(
        names(folder.path()).is_empty(),
        "{:?}",
        names(folder.path())
    );
}

/// Runs the program under `strace`, which has a system call fail, or the program die in it.
fn injected(injection: &str, folder: &Path) -> (Option<i32>, String) {
    let call = injection.split(':').next().unwrap();
    let strace = format!("strace -f -qq -o /dev/null -e trace={call} -e inject={injection} {RECV}");
    replay_into(&strace, folder)
}

#[test]
fn writes_that_fail_are_errors_and_leave_no_file() {
    for injection in [
        "pwrite64:error=EIO:when=1",
        "pwrite64:error=EIO:when=2",
        "write:error=EIO:when=3",
        "fsync:error=EIO:when=1",
        "renameat2:error=EIO:when=1",
    ] {
        let folder = folder();
        let (status, said) = injected(injection, folder.path());
        // The program's own words are written, too: the third write is the file's.
        assert_eq!(status, Some(1), "{injection}: {said}");
        assert!(said.contains("Input/output error"), "{injection}: {said}");
        assert!(
            names(folder.path()).is_empty(),
            "{injection}: {:?}",
            names(folder.path())
        );
    }
}

#[test]
fn adjacent_pages_are_one_system_call() {
    let folder = folder();
    let script = format!("strace -f -qq -e trace=pwrite64 -o \"$2/calls\" {RECV}");
    let (status, said) = replay_into(&script, folder.path());
    assert_eq!(status, Some(0), "{said}");
    let output = run(&[
        "inspect",
        folder.path().join("vm.mapped").to_str().unwrap(),
        "--json",
    ]);
    let inspected = multifd_tests::program::json(&output);
    let blocks = inspected["blocks"].as_array().unwrap();
    let stored: u64 = blocks
        .iter()
        .map(|block| block["stored_pages"].as_u64().unwrap())
        .sum();
    let calls = std::fs::read_to_string(folder.path().join("calls")).unwrap();
    let calls = calls.matches("pwrite64(").count();
    // One for each run of pages of each packet as it came, and one bitmap a block.
    assert!(
        stored > 250 && calls < 80,
        "{stored} pages in {calls} calls"
    );
}

#[test]
fn interrupted_calls_are_repeated() {
    let folder = folder();
    let (status, said) = injected("pwrite64:error=EINTR:when=1+2", folder.path());
    assert_eq!(status, Some(0), "{said}");
    let file = folder.path().join("vm.mapped");
    let file = file.to_str().unwrap();
    let out = folder.path().join("RAM.bin");
    assert!(run(&["verify", file, "--require-digest"]).status.success());
    // The first reads are those of the dynamic loader, which does not take it.
    let calls = folder.path().join("calls");
    let output = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            calls.to_str().unwrap(),
            "-e",
            "trace=pread64",
        ])
        .args(["-e", "inject=pread64:error=EINTR:when=4+2"])
        .arg(path())
        .args([
            "extract",
            file,
            "--block",
            "pc.ram",
            "--out",
            out.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(std::fs::read_to_string(&calls).unwrap().contains("EINTR"));
    let golden = Golden::load("none-2ch");
    let ram = std::fs::read(&out).unwrap();
    assert_eq!(multifd_tests::guest::sha256(&ram), golden.ram_sha256());
}

#[test]
fn a_descriptor_that_was_passed_is_written_and_read() {
    let folder = folder();
    let script =
        "exec 7<>\"$2/passed\"; exec \"$1\" recv --listen tcp:127.0.0.1:0 --out /dev/fdset/7";
    let (status, said) = replay_into(script, folder.path());
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(names(folder.path()), ["passed"]);
    let script = "exec 8<\"$2/passed\"; exec \"$1\" verify /dev/fdset/8";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(path())
        .arg(folder.path())
        .output();
    assert!(output.unwrap().status.success());
}

/// Whatever stands under the final name must be whole.
fn whole_or_absent(folder: &Path, when: &str) -> bool {
    let file = folder.join("vm.mapped");
    if !file.exists() {
        return false;
    }
    let output = run(&["verify", file.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "{when}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    true
}

#[test]
fn death_in_any_call_leaves_no_file_that_looks_whole() {
    let mut found = 0;
    for injection in [
        "pwrite64:signal=KILL:when=1",
        "pwrite64:signal=KILL:when=2",
        "write:signal=KILL:when=3",
        "fsync:signal=KILL:when=1",
        "fsync:signal=KILL:when=2",
        "renameat2:signal=KILL:when=1",
        "renameat2:signal=KILL:when=2",
        "fsync:signal=KILL:when=3",
    ] {
        let folder = folder();
        let (status, said) = injected(injection, folder.path());
        assert_ne!(status, Some(0), "{injection}: {said}");
        found += u32::from(whole_or_absent(folder.path(), injection));
        // What the dead process has left, the next one removes.
        let (status, said) = replay_into(&RECV.replace("vm.mapped", "next.mapped"), folder.path());
        assert_eq!(status, Some(0), "{injection}: {said}");
        let left: Vec<_> = names(folder.path())
            .into_iter()
            .filter(|name| name.ends_with(".partial"))
            .collect();
        assert_eq!(left, [""; 0], "{injection}");
    }
    assert!(
        found >= 1,
        "the last of them come after the file has its name"
    );
}

#[test]
fn kill_9_at_any_moment_leaves_no_file_that_looks_whole() {
    let (mut killed, mut finished) = (0, 0);
    for round in 0..24u32 {
        let folder = folder();
        let (mut child, mut stderr) = listen(&format!("exec {RECV}"), folder.path());
        let moment = Instant::now() + Duration::from_millis(u64::from(round) * 6);
        while Instant::now() < moment && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        let whole = whole_or_absent(folder.path(), &format!("round {round}"));
        assert!(
            whole || !status.success(),
            "it succeeded, and there is no file: {said}"
        );
        killed += u32::from(!status.success());
        finished += u32::from(status.success());
    }
    assert!(
        killed > 0,
        "killed {killed} times, finished {finished} times"
    );
}
