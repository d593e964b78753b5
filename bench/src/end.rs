//! Our ends as processes of their own, and the watch that is kept on any end.

use crate::ours::Told;
use crate::process::{MemoryWatch, Trace, cpu};
use crate::qemu::Result;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// One of our ends.
pub(crate) struct Ours {
    child: Child,
    said: BufReader<ChildStdout>,
    told: ChildStdin,
}

impl Ours {
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let me = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut child = Command::new(me)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let said = child.stdout.take().ok_or("a child without an output")?;
        let told = child.stdin.take().ok_or("a child without an input")?;
        Ok(Self {
            child,
            said: BufReader::new(said),
            told,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn line<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.said.read_line(&mut line).map_err(|e| e.to_string())?;
        serde_json::from_str(&line).map_err(|e| format!("our end failed ({line:?}: {e})"))
    }

    /// Waits until it has all it needs and would begin.
    pub(crate) fn ready(&mut self) -> Result<()> {
        self.line::<String>().map(|_| ())
    }

    /// Has it begin.
    pub(crate) fn go(&mut self) -> Result<()> {
        self.told.write_all(b"go\n").map_err(|e| e.to_string())
    }

    pub(crate) fn told(&mut self) -> Result<Told> {
        self.line()
    }

    /// Waits for the process's end, which must be a good one.
    pub(crate) fn end(mut self) -> Result<()> {
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("our end failed: {status}"))
        }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The watch on one end, ours or QEMU's.
pub(crate) struct Watch {
    pid: u32,
    cpu: f64,
    memory: MemoryWatch,
    trace: Option<Trace>,
}

/// What one end used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) cpu: f64,
    pub(crate) memory: u64,
    pub(crate) calls: Option<u64>,
}

impl Watch {
    /// Watches the memory a process takes beyond `before`, and, with a file for them, its system
    /// calls.
    pub(crate) fn start(pid: u32, before: u64, calls: Option<PathBuf>) -> Self {
        Self {
            pid,
            cpu: cpu(pid),
            memory: MemoryWatch::start(pid, before),
            // Where it may start a program, it may still not attach to one.
            trace: calls.and_then(|file| Trace::attach(pid, file).ok()),
        }
    }

    pub(crate) fn end(self) -> Result<Used> {
        Ok(Used {
            cpu: cpu(self.pid) - self.cpu,
            memory: self.memory.end(),
            calls: self.trace.map(Trace::end).transpose()?,
        })
    }
}
