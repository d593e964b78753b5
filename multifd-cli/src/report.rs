//! What a command has done, for people and for programs.

use crate::encoding::Chosen;
use crate::failure::Failure;
use crate::output::Stored;
use indicatif::HumanBytes;
use multifd_core::packet::Compression;
use multifd_core::{ChannelStats, Stats};
use multifd_qemu::qmp::GuestReport;
use multifd_qemu::{BlockInfo, SyncStyle};
use multifd_transport_socket::ZeroCopyCounts;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::time::Duration;

/// Prints a result: as one JSON object, or as the text.
pub(crate) fn print(json: bool, result: &impl Serialize, text: &str) -> Result<(), Failure> {
    if !json {
        return say(&tame_lines(text));
    }
    let line = serde_json::to_string(result).map_err(|error| Failure::Other(error.to_string()))?;
    say(&escape_invisible(&line))
}

/// Whether a character would do something to a terminal, or change the order in which others are
/// shown.
fn is_wild(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A name from a peer or a file, without what would do something to a terminal.
pub(crate) fn tame(name: &str) -> String {
    name.chars()
        .map(|c| if is_wild(c) { '?' } else { c })
        .collect()
}

/// Lines of text, each tame.
pub(crate) fn tame_lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(tame).collect();
    lines.join("\n")
}

/// JSON escapes what controls a terminal, but not what changes the order of characters.
fn escape_invisible(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_wild(c) {
            // Writing to a String does not fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Prints a line on standard error, whole or not at all: others may be writing there, too.
pub(crate) fn note(line: &str) {
    let _ = std::io::stderr().write_all(format!("{}\n", tame_lines(line)).as_bytes());
}

/// Notes what goes wrong without a command's failing.
pub(crate) fn log() -> multifd_transport_store::Log {
    std::sync::Arc::new(|line| note(&format!("multifd: {line}")))
}

/// Prints a line on standard output. A reader that closes it early is not an error.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(cause) if cause.kind() != ErrorKind::BrokenPipe => Err(Failure::System {
            doing: "printing the result",
            cause,
        }),
        _ => Ok(()),
    }
}

/// Counts of one channel, or of all.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Counts {
    wire_bytes: u64,
    guest_bytes: u64,
    normal_pages: u64,
    zero_pages: u64,
    packets: u64,
    syncs: u64,
}

impl Counts {
    pub(crate) fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }
}

impl From<ChannelStats> for Counts {
    fn from(stats: ChannelStats) -> Self {
        Self {
            wire_bytes: stats.wire_bytes,
            guest_bytes: stats.guest_bytes,
            normal_pages: stats.normal_pages,
            zero_pages: stats.zero_pages,
            packets: stats.packets,
            syncs: stats.syncs,
        }
    }
}

/// A RAM block.
#[derive(Debug, Serialize)]
pub(crate) struct Block {
    name: String,
    bytes: u64,
}

/// What became of a guest whose snapshot was taken.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Guest {
    /// The state it was found in, in QEMU's words.
    pub(crate) found: String,
    /// The state it was left in.
    pub(crate) left: String,
    /// How long it stood still, from QEMU's event STOP to its event RESUME; not there if it was not
    /// let run again.
    pub(crate) pause_seconds: Option<f64>,
    /// How long it stood still by QEMU's own measure, which ends when all has been sent.
    pub(crate) downtime_seconds: Option<f64>,
    /// Rounds over its memory, as QEMU counts them.
    pub(crate) rounds: u64,
    /// When it was stopped because of `--max-rounds`, in seconds from the start.
    pub(crate) stopped_early_after_seconds: Option<f64>,
}

impl From<GuestReport> for Guest {
    fn from(guest: GuestReport) -> Self {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        Self {
            pause_seconds: seconds(guest.pause),
            downtime_seconds: seconds(guest.downtime),
            stopped_early_after_seconds: seconds(guest.stopped_early_after),
            rounds: guest.rounds,
            found: guest.found,
            left: guest.left,
        }
    }
}

impl Guest {
    /// For people.
    pub(crate) fn line(&self) -> String {
        let mut line = match self.pause_seconds {
            Some(pause) => format!("the guest stood still for {:.0} ms", pause * 1000.0),
            None => format!("the guest was {}, and is {}", self.found, self.left),
        };
        if let Some(downtime) = self.downtime_seconds {
            let _ = write!(line, " (QEMU's own downtime {:.0} ms)", downtime * 1000.0);
        }
        let _ = write!(line, ", {} rounds by QEMU's count", self.rounds);
        if let Some(after) = self.stopped_early_after_seconds {
            let _ = write!(
                line,
                "; it dirtied memory too fast, and was stopped after {after:.2} s (--max-rounds)"
            );
        }
        line
    }
}

/// A transfer over channels.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Transfer {
    pub(crate) ok: bool,
    pub(crate) machine: String,
    pub(crate) uuid: String,
    pub(crate) compression: String,
    pub(crate) sync: &'static str,
    pub(crate) rounds: Option<u64>,
    /// From the main connection on, without what comes after: writing a file, waiting for the
    /// destination's end.
    pub(crate) seconds: f64,
    /// How long it took to write, sync and name the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) write_seconds: Option<f64>,
    /// From the opening of the channels to their end.
    pub(crate) channel_seconds: f64,
    pub(crate) main_bytes: u64,
    /// All channels together, and the pages of the main connection.
    pub(crate) total: Counts,
    /// Pages of the main connection.
    pub(crate) main: Counts,
    pub(crate) channels: Vec<Counts>,
    pub(crate) blocks: Vec<Block>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<String>,
    /// What the snapshot takes in a store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stored: Option<Stored>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stored_pages: Option<u64>,
    /// Whether QEMU's description of the device sections fits them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device_sections_fit: Option<bool>,
    /// Whether the companion says where memory lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) has_layout: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest: Option<Guest>,
    /// The state of a restored guest, in QEMU's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<String>,
    /// QEMU read or wrote the file by itself: nothing was counted.
    pub(crate) by_qemu: bool,
    /// What of a snapshot is mapped, and what had to be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mapped: Option<Mapped>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auto: Option<Chosen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) zero_copy: Option<ZeroCopy>,
}

/// A snapshot that is a QEMU's RAM.
#[derive(Debug, Serialize)]
pub(crate) struct Mapped {
    pub(crate) blocks: usize,
    pub(crate) bytes: u64,
    pub(crate) reloaded_pages: u64,
    pub(crate) sent_bytes: u64,
}

/// How zero-copy sends went.
#[derive(Debug, Serialize)]
pub(crate) struct ZeroCopy {
    sends: u64,
    copied: u64,
    fell_back: u64,
}

impl From<ZeroCopyCounts> for ZeroCopy {
    fn from(counts: ZeroCopyCounts) -> Self {
        let ZeroCopyCounts {
            sends,
            copied,
            fell_back,
            ..
        } = counts;
        Self {
            sends,
            copied,
            fell_back,
        }
    }
}

impl ZeroCopy {
    /// For people.
    pub(crate) fn line(&self) -> String {
        let Self {
            sends,
            copied,
            fell_back,
        } = self;
        let really = sends - copied.min(sends);
        format!(
            "zero copy: {really} of {sends} sends went without one; {fell_back} more were not tried for want of memory to lock"
        )
    }
}

impl Transfer {
    /// The counts as a line for people.
    pub(crate) fn line(&self, verb: &str) -> String {
        let Counts {
            wire_bytes,
            guest_bytes,
            normal_pages,
            zero_pages,
            ..
        } = self.total;
        let rounds = self
            .rounds
            .map_or(String::new(), |rounds| format!(", {rounds} rounds"));
        #[allow(clippy::cast_precision_loss, clippy::cast_sign_loss)] // A rate for people to read.
        let rate = HumanBytes((guest_bytes as f64 / self.seconds.max(0.001)) as u64);
        let over = match self.channels.len() {
            0 => "the main connection".into(),
            n => format!("{n} channels"),
        };
        format!(
            "{verb} {} of guest memory ({normal_pages} pages, {zero_pages} zero pages) in {:.2} s ({rate}/s): {} on the \
             wire over {over}, compression {}{rounds}",
            HumanBytes(guest_bytes),
            self.seconds,
            HumanBytes(wire_bytes + self.main_bytes),
            self.compression,
        )
    }
}

/// A size for people.
pub(crate) fn bytes(bytes: u64) -> HumanBytes {
    HumanBytes(bytes)
}

pub(crate) fn channels(stats: &Stats) -> Vec<Counts> {
    stats.channels.iter().map(|&one| one.into()).collect()
}

/// The methods of a transfer's packets as one word.
pub(crate) fn methods(methods: &[Compression]) -> String {
    if methods.is_empty() {
        return Compression::None.name().into();
    }
    let names: Vec<_> = methods.iter().map(|method| method.name()).collect();
    names.join("+")
}

pub(crate) fn blocks(blocks: Vec<BlockInfo>) -> Vec<Block> {
    let block = |info: BlockInfo| Block {
        name: info.name,
        bytes: info.used_length,
    };
    blocks.into_iter().map(block).collect()
}

pub(crate) fn sync_name(sync: SyncStyle) -> &'static str {
    match sync {
        SyncStyle::EachRound => "round",
        SyncStyle::EachSection => "section",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_change_a_terminal_is_shown_tame() {
        for wild in [
            "\u{1b}[2J",
            "\u{9b}31m",
            "\u{202e}txt.exe",
            "\u{2066}x\u{2069}",
            "\u{200f}",
            "a\rb",
        ] {
            let shown = tame(wild);
            assert!(!shown.chars().any(is_wild), "{shown:?}");
            let json = escape_invisible(&serde_json::to_string(wild).unwrap());
            assert!(!json.chars().any(is_wild), "{json}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), wild);
        }
        assert_eq!(tame_lines("one\ntwo\u{7}"), "one\ntwo?");
        assert_eq!(tame("Ünïcode 日本"), "Ünïcode 日本");
    }
}
