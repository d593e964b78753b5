//! The program `multifd`, as a user runs it.

use crate::netns;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;

/// Whether it is built as users have it.
static RELEASE: AtomicBool = AtomicBool::new(false);

/// Has [`path`] build the program as users have it, if it has not been built yet.
pub fn use_release() {
    RELEASE.store(true, Ordering::Relaxed);
}

/// The program's path; it is built first, once a process.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        // What the outer cargo says of this test's package would have build scripts run again, and
        // all that depends on them be compiled again, each time.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&*name);
            }
        }
        let output = cargo
            .args([
                "build",
                "-p",
                "multifd-cli",
                "--bin",
                "multifd",
                "--locked",
                "--message-format=json",
            ])
            .args(RELEASE.load(Ordering::Relaxed).then_some("--release"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "multifd-cli does not build");
        let messages = String::from_utf8(output.stdout).unwrap();
        let executable = messages.lines().find_map(|line| {
            let message: Value = serde_json::from_str(line).ok()?;
            message["executable"].as_str().map(PathBuf::from)
        });
        executable.expect("cargo names the executable it built")
    })
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Output {
    Command::new(path())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs the program to its end, and says how much anonymous memory it had at the most, in bytes.
pub fn run_measured(args: &[&str]) -> (Output, u64) {
    let child = Command::new(path())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let watch = MemoryWatch::start(child.id());
    let output = child.wait_with_output().unwrap();
    (output, watch.end())
}

/// Watches how much anonymous memory a process takes; mapped files are not part of it.
#[derive(Debug)]
pub struct MemoryWatch {
    most: Arc<AtomicU64>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    /// Watches a process of this machine until it is told to end.
    pub fn start(pid: u32) -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = mpsc::channel::<()>();
        let seen = Arc::clone(&most);
        let thread = std::thread::spawn(move || {
            let every = std::time::Duration::from_millis(2);
            while stopped.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                let status =
                    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let kib = status
                    .lines()
                    .find_map(|line| line.strip_prefix("RssAnon:"))
                    .and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
                seen.fetch_max(kib.unwrap_or(0) << 10, Ordering::Relaxed);
            }
        });
        Self {
            most,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The most it had, in bytes.
    pub fn end(mut self) -> u64 {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.most.load(Ordering::Relaxed)
    }
}

/// The JSON object a command printed.
pub fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text:?}, {}", String::from_utf8_lossy(&output.stderr)))
}

/// A `multifd recv --json`, or `multifd relay --json`, that listens. It is killed when dropped.
pub struct Recv {
    child: Option<Child>,
    stderr: BufReader<ChildStderr>,
    /// Where it listens.
    pub address: String,
}

impl std::fmt::Debug for Recv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recv")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Recv {
    /// Starts `multifd recv`, and waits until it listens.
    pub fn start(listen: &str, out: &Path, more: &[&str]) -> Self {
        let out = out.to_str().unwrap();
        Self::listening(
            None,
            &[&["recv", "--listen", listen, "--out", out], more].concat(),
        )
    }

    /// Starts a command that listens, in a network namespace, and waits until it does.
    pub fn listening(netns: Option<&str>, args: &[&str]) -> Self {
        let mut child = netns::command(netns, path().as_ref())
            .args(args)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("{line:?}"));
        Self {
            child: Some(child),
            stderr,
            address: address.into(),
        }
    }

    /// The next line it says, as where else it listens.
    pub fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line.trim().into()
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Kills it.
    pub fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Output {
        let child = self.child.take().unwrap();
        let mut output = child.wait_with_output().unwrap();
        self.stderr.read_to_end(&mut output.stderr).unwrap();
        output
    }

    /// Waits for its end, which must be a success, and returns what it printed.
    pub fn succeed(self) -> Value {
        let output = self.finish();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        json(&output)
    }
}

impl Drop for Recv {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let mut said = String::new();
                let _ = self.stderr.read_to_string(&mut said);
                eprintln!("multifd on {} said: {said}", self.address);
            }
        }
    }
}

/// Extracts a block with the program, and returns its bytes.
pub fn extract(file: &Path, block: &str) -> Vec<u8> {
    let out = file.with_extension(format!("{}.bin", block.replace('/', "_")));
    let output = run(&[
        "extract",
        file.to_str().unwrap(),
        "--block",
        block,
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let bytes = std::fs::read(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    bytes
}
