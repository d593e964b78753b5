//! QEMU's control socket: one JSON object a line, each way.

use crate::failure::Failure;
use multifd_transport_socket::{Address, SocketOptions, SocketStream, SocketTransport};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::time::{Duration, Instant};

/// How often a wait looks again.
const TICK: Duration = Duration::from_millis(100);
/// Longest line taken; QEMU's answers are far shorter.
const MAX_LINE: usize = 16 << 20;

/// A connection to QEMU's monitor.
pub(crate) struct Qmp {
    stream: BufReader<SocketStream>,
    address: Address,
    line: Vec<u8>,
    deadline: Duration,
}

impl Qmp {
    /// Connects and takes part; every answer must come within `deadline`.
    pub(crate) fn connect(address: &Address, deadline: Duration) -> Result<Self, Failure> {
        let options = SocketOptions {
            connect: deadline,
            stall: TICK,
            ..SocketOptions::default()
        };
        let stream = SocketTransport::new(address.clone(), options).connect();
        let stream = stream.map_err(|source| Failure::Connection {
            doing: "connecting to QMP",
            source,
        })?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            address: address.clone(),
            line: Vec::new(),
            deadline,
        };
        let greeting = qmp.wait_message()?;
        if greeting.get("QMP").is_none() {
            return Err(qmp.failed(format!("it does not greet like QMP, but with {greeting}")));
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn failed(&self, why: String) -> Failure {
        Failure::Qmp {
            address: self.address.to_string(),
            why,
        }
    }

    /// The next message, if one comes soon.
    fn message(&mut self) -> Result<Option<Value>, Failure> {
        loop {
            let result = self.stream.fill_buf().map(|bytes| {
                let end = bytes.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
                let taken = end.unwrap_or(bytes.len());
                self.line.extend(bytes.iter().take(taken));
                (taken, end.is_some())
            });
            match result {
                Ok((0, _)) => return Err(self.failed("it closed the connection".into())),
                Ok((taken, whole)) => {
                    self.stream.consume(taken);
                    if self.line.len() > MAX_LINE {
                        return Err(self.failed("it sends a line without end".into()));
                    }
                    if whole {
                        let value = serde_json::from_slice(&self.line);
                        self.line.clear();
                        return value
                            .map(Some)
                            .map_err(|e| self.failed(format!("it does not speak JSON: {e}")));
                    }
                }
                Err(e) if e.kind() == ErrorKind::TimedOut => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(e.to_string())),
            }
        }
    }

    fn wait_message(&mut self) -> Result<Value, Failure> {
        let end = Instant::now() + self.deadline;
        loop {
            if let Some(message) = self.message()? {
                return Ok(message);
            }
            if Instant::now() >= end {
                return Err(self.failed(format!("it says nothing for {:?}", self.deadline)));
            }
        }
    }

    /// Executes a command and returns its result.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Failure> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        let written = self.stream.get_mut().write_all(line.as_bytes());
        written.map_err(|e| self.failed(format!("{command}: {e}")))?;
        loop {
            let mut message = self.wait_message()?;
            if let Some(error) = message.get("error") {
                let words = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .unwrap_or("an error without words");
                return Err(self.failed(format!("{command}: {words}")));
            }
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            // Anything else is an event; states are asked for.
        }
    }

    /// Waits a moment: until an event comes, or a tick has passed.
    pub(crate) fn pause(&mut self) -> Result<(), Failure> {
        self.message().map(drop)
    }

    /// The migration's state in QEMU's words, and why it failed, if it did.
    pub(crate) fn migration(&mut self) -> Result<Migration, Failure> {
        let info = self.execute("query-migrate", &json!({}))?;
        let text = |name: &str| info.get(name).and_then(Value::as_str).map(str::to_owned);
        Ok(Migration {
            status: text("status").unwrap_or_else(|| "none".into()),
            error: text("error-desc"),
            rounds: info
                .pointer("/ram/dirty-sync-count")
                .and_then(Value::as_u64)
                .unwrap_or(0),
            port: info
                .pointer("/socket-address/0/port")
                .and_then(Value::as_str)
                .map(str::to_owned),
        })
    }

    /// Whether the guest runs, and the state it is in, in QEMU's words.
    pub(crate) fn guest(&mut self) -> Result<(bool, String), Failure> {
        let info = self.execute("query-status", &json!({}))?;
        let running = info.get("running").and_then(Value::as_bool).unwrap_or(false);
        let status = info.get("status").and_then(Value::as_str).unwrap_or("unknown");
        Ok((running, status.to_owned()))
    }
}

/// What QEMU says of a migration.
pub(crate) struct Migration {
    pub(crate) status: String,
    pub(crate) error: Option<String>,
    pub(crate) rounds: u64,
    /// The port a destination listens on.
    pub(crate) port: Option<String>,
}

impl Migration {
    /// Whether nothing is under way.
    pub(crate) fn is_over(&self) -> bool {
        ["none", "completed", "failed", "cancelled"].contains(&self.status.as_str())
    }
}
