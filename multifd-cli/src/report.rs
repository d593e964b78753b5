//! What a command has done, for people and for programs.

use crate::encoding::Chosen;
use indicatif::HumanBytes;
use multifd_core::{ChannelStats, Stats};
use multifd_packet::Method;
use multifd_qemu::{BlockInfo, SyncStyle};
use multifd_transport_socket::ZeroCopyCounts;
use serde::Serialize;
use std::io::Write;

/// Prints a result: as one JSON object, or as the text.
pub(crate) fn print(json: bool, result: &impl Serialize, text: &str) {
    let line = serde_json::to_string(result).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    say(if json { &line } else { text });
}

/// A name from a peer or a file, without what would do something to a terminal.
pub(crate) fn tame(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Prints a line on standard error, whole or not at all: others may be writing there, too.
pub(crate) fn note(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Prints a line on standard output. Whoever closes that early has seen enough: it is no error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Counts of one channel, or of all.
#[derive(Debug, Serialize)]
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

/// A transfer over channels.
#[derive(Debug, Serialize)]
pub(crate) struct Transfer {
    pub(crate) ok: bool,
    pub(crate) machine: String,
    pub(crate) uuid: String,
    pub(crate) compression: String,
    pub(crate) sync: &'static str,
    pub(crate) rounds: Option<u64>,
    pub(crate) seconds: f64,
    /// From the opening of the channels to their end.
    pub(crate) channel_seconds: f64,
    pub(crate) main_bytes: u64,
    pub(crate) total: Counts,
    pub(crate) channels: Vec<Counts>,
    pub(crate) blocks: Vec<Block>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stored_pages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auto: Option<Chosen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) zero_copy: Option<ZeroCopy>,
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
        format!(
            "{verb} {} of guest memory ({normal_pages} pages, {zero_pages} zero pages) in {:.2} s ({rate}/s): {} on the \
             wire over {} channels, compression {}{rounds}",
            HumanBytes(guest_bytes),
            self.seconds,
            HumanBytes(wire_bytes + self.main_bytes),
            self.channels.len(),
            self.compression,
        )
    }
}

pub(crate) fn channels(stats: &Stats) -> Vec<Counts> {
    stats.channels.iter().map(|&one| one.into()).collect()
}

/// The methods of a transfer's packets as one word.
pub(crate) fn methods(methods: &[Method]) -> String {
    if methods.is_empty() {
        return Method::None.name().into();
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

/// A UUID in its usual form.
pub(crate) fn uuid(bytes: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let parts =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default().to_owned());
    parts.join("-")
}
