//! What a process has used: processor time, memory that is its own, system calls.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Processor seconds of a process that lives.
pub(crate) fn cpu(pid: u32) -> f64 {
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold anything; what follows it does not.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |n: usize| fields.get(n)?.parse::<u64>().ok();
        Some(field(11)? + field(12)?)
    };
    let per_second = rustix::param::clock_ticks_per_second();
    #[allow(clippy::cast_precision_loss)] // Seconds for people.
    let seconds = ticks().unwrap_or(0) as f64 / per_second as f64;
    seconds
}

/// Anonymous memory of a process that is resident, in bytes: guest RAM in a file is not.
pub(crate) fn anonymous(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Watches how much anonymous memory a process takes.
pub(crate) struct MemoryWatch {
    before: u64,
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    /// Watches what it takes beyond `before`.
    pub(crate) fn start(pid: u32, before: u64) -> Self {
        let (most, stop) = (
            Arc::new(AtomicU64::new(before)),
            Arc::new(AtomicBool::new(false)),
        );
        let (seen, ended) = (Arc::clone(&most), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                seen.fetch_max(anonymous(pid), Ordering::Relaxed);
                // How often it is looked at.
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            before,
            most,
            stop,
            thread: Some(thread),
        }
    }

    /// The most it took beyond what it had, in bytes.
    pub(crate) fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.most
            .load(Ordering::Relaxed)
            .saturating_sub(self.before)
    }
}

/// Counts the system calls of a process that runs already.
pub(crate) struct Trace {
    child: Child,
    file: PathBuf,
}

/// The program that counts system calls, as it writes its table into a file.
fn strace(file: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o"]).arg(file);
    command
}

/// Whether the program is there, and may start others.
pub(crate) fn can_count_calls() -> bool {
    let file = std::env::temp_dir().join(format!("multifd-bench-{}", std::process::id()));
    let status = strace(&file)
        .arg("true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let counted = counted(&file);
    let _ = std::fs::remove_file(&file);
    status.is_ok_and(|status| status.success()) && counted.is_ok()
}

/// The sum of a table of system calls.
fn counted(file: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let total = text
        .lines()
        .rfind(|line| line.trim_end().ends_with("total"));
    // Share, seconds, seconds for each call, calls, then maybe errors.
    let calls = total.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    calls.ok_or_else(|| format!("no sum of system calls in {text:?}"))
}

impl Trace {
    /// Returns when all threads are watched.
    pub(crate) fn attach(pid: u32, file: PathBuf) -> Result<Self, String> {
        let mut child = strace(&file)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("strace: {e}"))?;
        let said = child.stderr.take().ok_or("strace without an output")?;
        let mut line = String::new();
        let mut said = BufReader::new(said);
        let read = said.read_line(&mut line).map_err(|e| e.to_string());
        if read.is_err() || !line.contains("attached") {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("strace does not attach: {line}"));
        }
        // What it says of threads that come and go must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(Self { child, file })
    }

    /// System calls made since.
    pub(crate) fn end(mut self) -> Result<u64, String> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        // It ends by itself when its process does; then there is nobody to tell.
        if let Some(pid) = pid.filter(|_| matches!(self.child.try_wait(), Ok(None))) {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)
                .map_err(|e| e.to_string())?;
        }
        self.child.wait().map_err(|e| e.to_string())?;
        counted(&self.file)
    }
}
