//! Every way a transfer can fail, with where and why.

use crate::{BlockError, OverBudget};
use multifd_packet::{Compression, PacketError, Uuid};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Any error, as sinks and destinations return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong with one channel's I/O; the engine adds which channel, and what it was doing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The peer closed the channel in the middle of a message.
    #[error("the peer closed the connection after {received} of {expected} bytes")]
    Closed {
        /// Bytes that arrived.
        received: usize,
        /// Bytes the message has.
        expected: usize,
    },
    /// Nothing moved for the whole deadline.
    #[error("nothing moved for {deadline:?}")]
    Stalled {
        /// The deadline.
        deadline: Duration,
    },
    /// The transfer was ended from our side.
    #[error("the transfer was stopped")]
    Stopped,
    /// The operating system refused.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// The peer is at fault: it does not speak what this transport expects, or has failed.
    #[error("{0}")]
    Peer(String),
    /// We are at fault: the transport cannot work as it was set up.
    #[error("{0}")]
    Misconfigured(String),
    /// Nobody is at fault: this transport or this system cannot do what was asked for.
    #[error("{0}")]
    Unsupported(String),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Errors of an encoder.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MethodError {
    /// The codec reported an error.
    #[error("{method}: {reason}")]
    Codec {
        /// The method.
        method: Compression,
        /// The codec's words.
        reason: String,
    },
    /// The threads of a pool could not be started.
    #[error("cannot start {threads} compression threads: {reason}")]
    Threads {
        /// How many were asked for; 0: as many as there are processors.
        threads: usize,
        /// The system's words.
        reason: String,
    },
    /// The parameters of the method are out of range.
    #[error("{method} level {found} is not between {min} and {max}")]
    Level {
        /// The method.
        method: Compression,
        /// The level asked for.
        found: i32,
        /// The lowest level.
        min: i32,
        /// The highest level.
        max: i32,
    },
}

/// What can be wrong with a payload.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The bytes did not arrive.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Decoding takes more memory than there may be.
    #[error("{method}: {cause}")]
    Memory {
        /// The method.
        method: Compression,
        /// How much there was.
        cause: OverBudget,
    },
    /// The codec refused the bytes.
    #[error("the {method} data of page {page} (of {pages}) is damaged: {reason}")]
    Damaged {
        /// The method.
        method: Compression,
        /// Index of the page in the packet.
        page: usize,
        /// Normal pages in the packet.
        pages: usize,
        /// The codec's words.
        reason: String,
    },
    /// The payload ended before all pages were there.
    #[error("the {method} data ends in page {page} of {pages}")]
    TooShort {
        /// The method.
        method: Compression,
        /// Index of the page in the packet.
        page: usize,
        /// Normal pages in the packet.
        pages: usize,
    },
    /// The payload holds more than its pages.
    #[error(
        "the {method} data holds more than the {pages} pages it was announced for ({left} bytes of input left)"
    )]
    TooLong {
        /// The method.
        method: Compression,
        /// Normal pages in the packet.
        pages: usize,
        /// Input bytes that were not used.
        left: usize,
    },
}

/// The first thing that went wrong in a transfer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A channel's I/O failed.
    #[error("channel {channel}: {doing}: {cause}")]
    Channel {
        /// The channel's number; before its init packet, the order in which it came.
        channel: u8,
        /// What the channel was doing.
        doing: &'static str,
        /// What went wrong.
        cause: ChannelError,
    },
    /// A packet is not valid.
    #[error("channel {channel}: packet {index}: {cause}")]
    Packet {
        /// The channel.
        channel: u8,
        /// How many packets came before on this channel.
        index: u64,
        /// What is wrong with it.
        cause: PacketError,
    },
    /// A packet names a RAM block that does not exist.
    #[error("channel {channel}: there is no RAM block {block:?}")]
    UnknownBlock {
        /// The channel.
        channel: u8,
        /// The name.
        block: String,
    },
    /// A place is not inside its RAM block, or a block is unusable.
    #[error("channel {channel}: {cause}")]
    Place {
        /// The channel.
        channel: u8,
        /// What is wrong.
        cause: BlockError,
    },
    /// A RAM block or a place named by the caller is unusable.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A payload could not be put in place.
    #[error("channel {channel}: RAM block {block:?}: {cause}")]
    Payload {
        /// The channel.
        channel: u8,
        /// The block.
        block: String,
        /// What is wrong.
        cause: UnpackError,
    },
    /// A method could not encode.
    #[error("channel {channel}: {cause}")]
    Method {
        /// The channel.
        channel: u8,
        /// What is wrong.
        cause: MethodError,
    },
    /// A method could not encode, on a thread that is no channel's.
    #[error("preparing a packet: {cause}")]
    Prepare {
        /// What is wrong.
        cause: MethodError,
    },
    /// A channel uses a method that was not agreed on, or cannot be decoded here.
    #[error("channel {channel}: packets use compression {found}, expected {expected}")]
    UnexpectedMethod {
        /// The channel.
        channel: u8,
        /// The packet's method.
        found: Compression,
        /// What could be taken.
        expected: String,
    },
    /// The peer's UUID is another one.
    #[error("channel {channel}: the source's UUID is {found}, expected {expected}")]
    Uuid {
        /// The channel.
        channel: u8,
        /// The UUID in the init packet.
        found: Uuid,
        /// The UUID of the others, or the one asked for.
        expected: Uuid,
    },
    /// A channel id came a second time.
    #[error("channel {channel} connected a second time")]
    DuplicateChannel {
        /// The id.
        channel: u8,
    },
    /// A channel id is not below the number of channels.
    #[error(
        "a channel with id {channel} connected, but there are only {channels} channels (ids from 0)"
    )]
    ChannelOutOfRange {
        /// The id.
        channel: u8,
        /// How many channels there are.
        channels: usize,
    },
    /// Fewer or more channels than expected.
    #[error("{found} multifd channels connected, expected {expected}")]
    ChannelCount {
        /// How many connected.
        found: usize,
        /// How many should have.
        expected: usize,
    },
    /// The sender's packet numbers say that there were more packets.
    #[error(
        "{found} RAM packets came over {channels} channels, and their numbers say there were {expected}: packets were lost, or \
         a channel is missing; say how many there are"
    )]
    MissingPackets {
        /// Packets that came.
        found: u64,
        /// Packets there must have been.
        expected: u64,
        /// Channels that were known.
        channels: usize,
    },
    /// Two RAM packets of a transfer have one number: one was copied, or put in another's place.
    #[error(
        "channel {channel}: packet {index} has number {number}, which another RAM packet had before"
    )]
    RepeatedPacket {
        /// The channel.
        channel: u8,
        /// How many packets came before on this channel.
        index: u64,
        /// The packet's number.
        number: u64,
    },
    /// A RAM packet's number is too far from those that have come.
    #[error(
        "channel {channel}: packet {index} has number {number}, and {missing} has not come yet"
    )]
    PacketNumber {
        /// The channel.
        channel: u8,
        /// How many packets came before on this channel.
        index: u64,
        /// The packet's number.
        number: u64,
        /// The first number that is missing.
        missing: u64,
    },
    /// A channel ended while others still work on a round.
    #[error("channel {channel} ended before the round did")]
    EndedEarly {
        /// The channel.
        channel: u8,
    },
    /// A channel ended although pages it sent were not followed by a SYNC.
    #[error("channel {channel} ended within a round: it sent pages, and no SYNC after them")]
    EndedInRound {
        /// The channel.
        channel: u8,
    },
    /// A SYNC came that nobody joins.
    #[error("channel {channel} sent a SYNC after the last round")]
    AfterLastRound {
        /// The channel.
        channel: u8,
    },
    /// Device state came and nobody takes it, or its taker failed.
    #[error("channel {channel}: device state {label:?} (instance {instance}): {cause}")]
    DeviceState {
        /// The channel.
        channel: u8,
        /// The label.
        label: String,
        /// The instance.
        instance: u32,
        /// Why it could not be delivered.
        cause: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A destination could not take a packet's pages.
    #[error("channel {channel}: RAM block {block:?}: {cause}")]
    Destination {
        /// The channel.
        channel: u8,
        /// The block.
        block: String,
        /// The destination's reason.
        cause: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The caller named a RAM block by an index that does not exist.
    #[error("there is no RAM block {index}: the map has {blocks}")]
    NoSuchBlock {
        /// The index.
        index: usize,
        /// How many blocks there are.
        blocks: usize,
    },
    /// The parameters of an engine are unusable, or do not go together.
    #[error("{0}")]
    Misconfigured(String),
    /// Something was asked for that this transport, or this build, cannot do.
    #[error("{0}")]
    Unsupported(String),
    /// Somebody cancelled the transfer.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// A thread of the engine panicked: a bug here, or in a method or transport.
    #[error("the thread of channel {channel} panicked; this is a bug")]
    Panicked {
        /// The channel.
        channel: u8,
    },
    /// A job that prepares packets panicked: a bug in a method, or here.
    #[error("preparing a packet panicked; this is a bug")]
    PoolPanicked,
    /// Something was queued after the transfer had been finished.
    #[error("nothing more can be queued: the transfer has been finished")]
    Finished,
}

impl Error {
    /// What went wrong while a packet was prepared, with the channel that did it.
    pub(crate) fn on_channel(self, channel: u8) -> Self {
        match self {
            Self::Prepare { cause } => Self::Method { channel, cause },
            Self::Block(cause) => Self::Place { channel, cause },
            other => other,
        }
    }
}
