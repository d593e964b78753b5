//! The main channel's elements: their type bytes, and section headers and footers.

use crate::Error;
use crate::input::Input;
use std::io::Read;

pub(crate) const MAGIC: u32 = multifd_packet::MAIN_MAGIC;
pub(crate) const VERSION: u32 = 3;

pub(crate) const EOF: u8 = 0x00;
pub(crate) const START: u8 = 0x01;
pub(crate) const PART: u8 = 0x02;
pub(crate) const END: u8 = 0x03;
pub(crate) const FULL: u8 = 0x04;
pub(crate) const VMDESC: u8 = 0x06;
pub(crate) const CONFIGURATION: u8 = 0x07;
pub(crate) const COMMAND: u8 = 0x08;
pub(crate) const FOOTER: u8 = 0x7e;

/// The RAM section as QEMU names and versions it.
pub(crate) const RAM_NAME: &str = "ram";
pub(crate) const RAM_VERSION: u32 = 4;
/// The command by which a source says that the guest is stopped; it has no body.
pub(crate) const SWITCHOVER_START: u16 = 11;
/// The command by which a source prepares for postcopy: of RAM if it has a body, of dirty bitmaps
/// alone if not.
const POSTCOPY_ADVISE: u16 = 3;

/// Reads the channel's first eight bytes.
pub(crate) fn read_header<R: Read>(input: &mut Input<R>) -> Result<(), Error> {
    input.expect_u32("the magic number", MAGIC)?;
    input.expect_u32("the version", VERSION)
}

/// Reads the header of a section that starts; it must be the RAM section. Returns its id.
pub(crate) fn read_ram_start<R: Read>(input: &mut Input<R>) -> Result<u32, Error> {
    let id = input.u32("a section's id")?;
    let offset = input.offset();
    let name = input.name("a section's name")?;
    if name != RAM_NAME {
        let advice = match name.as_str() {
            "dirty-bitmap" => "switch the dirty-bitmaps capability off".into(),
            "block" => "switch the block capability off".into(),
            _ => "migrate without the device that sends it".to_string(),
        };
        return Err(Error::Refused {
            offset,
            what: format!("the iterable section {name:?}"),
            advice,
        });
    }
    input.expect_u32("the RAM section's instance", 0)?;
    input.expect_u32("the RAM section's version", RAM_VERSION)?;
    Ok(id)
}

/// Reads a section's footer.
pub(crate) fn read_footer<R: Read>(input: &mut Input<R>, id: u32) -> Result<(), Error> {
    let offset = input.offset();
    let kind = input.u8("a section's footer")?;
    if kind != FOOTER {
        return Err(Error::Malformed {
            offset,
            what: "a section's footer",
            found: format!("{kind:#04x}"),
            expected: format!("{FOOTER:#04x} (switch send-section-footer on for the machine)"),
        });
    }
    input.expect_u32("a section footer's id", id)
}

/// Reads a command, and returns it if what it means for us is not said by it alone: the start of
/// the switchover, and what asks for an answer. `asks` is a command of the latter kind that came
/// right before.
pub(crate) fn read_command<R: Read>(
    input: &mut Input<R>,
    asks: Option<(u64, u16)>,
) -> Result<u16, Error> {
    let offset = input.offset();
    let command = input.u16("a command")?;
    let len = input.u16("a command's length")?;
    let (what, advice) = match (command, len) {
        (SWITCHOVER_START, 0) if asks.is_none() => return Ok(command),
        (1, 0) => return Ok(command),
        (2, 4) => {
            input.u32("a ping")?;
            return Ok(command);
        }
        (SWITCHOVER_START | 1 | 2, _) => (
            "a return-path command",
            "switch the return-path capability off",
        ),
        (POSTCOPY_ADVISE, 0) => (
            "what announces postcopy of dirty bitmaps",
            "switch the dirty-bitmaps capability off",
        ),
        (POSTCOPY_ADVISE, _) => (
            "what announces postcopy of RAM",
            "switch the postcopy-ram capability off",
        ),
        (4..=6 | 9 | 10, _) => (
            "a postcopy command",
            "switch the postcopy-ram capability off",
        ),
        (7, _) => (
            "a packaged stream",
            "switch the postcopy-ram capability off",
        ),
        (8, _) => ("a COLO command", "switch the x-colo capability off"),
        _ => (
            "an unknown command",
            "use an older machine type or a newer version of this program",
        ),
    };
    Err(Error::Refused {
        offset,
        what: format!("{what} ({command})"),
        advice: advice.into(),
    })
}
