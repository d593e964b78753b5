//! A main channel that passes by: its rounds, and when its guest stops.

use crate::elements::{Element, Elements};
use crate::input::Input;
use crate::ram::{self, Record};
use crate::sections::{CONFIGURATION, read_footer, read_header};
use crate::{Configuration, Error, Limits};
use multifd_core::MemoryBudget;
use std::io::Read;
use std::time::Instant;

/// What a main channel has said, as far as it was followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Followed {
    /// Rounds that it had the channels join (`MULTIFD_FLUSH`); none of a machine type up to 8.0,
    /// which does not say it.
    pub flushes: u64,
    /// When the guest had stopped: the switchover command came, or the last part of the RAM
    /// section.
    pub stopped: Option<Instant>,
}

/// Follows a main channel to its device sections, or to its end. `seen` is called after every part
/// of the RAM section, with what is known so far. Nothing is kept but the block list and device
/// sections that come before the RAM, within `limits` and `budget`.
///
/// # Errors
/// [`Error`]: what a receiver would say of the channel.
pub fn follow(
    main: impl Read,
    limits: &Limits,
    budget: &MemoryBudget,
    mut seen: impl FnMut(Followed),
) -> Result<Followed, Error> {
    let mut input = Input::new(main, 0, None);
    read_header(&mut input)?;
    let mut kind = input.u8("the first element")?;
    let mut configuration = Configuration::default();
    if kind == CONFIGURATION {
        (configuration, kind) = Configuration::read(&mut input, limits)?;
    }
    let page_size = configuration.page_size();
    let mut held = budget
        .take("the device sections", 0)
        .map_err(|cause| Error::Memory { offset: 0, cause })?;
    let mut elements = Elements::new(kind);
    let mut followed = Followed::default();
    let mut page = vec![0; page_size as usize];
    while elements.next(&mut input, limits, &mut held)? == Element::Ram {
        if elements.switchover_start || elements.ram_has_ended() {
            followed.stopped.get_or_insert_with(Instant::now);
        }
        loop {
            match ram::read_record(&mut input)? {
                Record::Blocks { total } => {
                    drop(ram::read_blocks(&mut input, total, page_size, limits)?);
                }
                Record::Page {
                    zero, same_block, ..
                } => {
                    if !same_block {
                        input.name("a page's RAM block")?;
                    }
                    if zero {
                        input.u8("a zero page's byte")?;
                    } else {
                        input.fill(&mut page, "a page")?;
                    }
                }
                Record::Flush => followed.flushes += 1,
                Record::End => break,
            }
        }
        read_footer(&mut input, elements.ram_section())?;
        seen(followed);
    }
    Ok(followed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{
        push_block, push_end, push_flush, push_footer, push_header, push_ram_more, push_ram_start,
        push_total, push_zero_page,
    };
    use crate::sections::{END, PART};

    #[test]
    fn rounds_are_counted_and_the_last_part_is_when_the_guest_had_stopped() {
        let mut bytes = Vec::new();
        push_header(&mut bytes);
        Configuration::new("pc-i440fx-10.0").write(&mut bytes);
        push_ram_start(&mut bytes, 2);
        push_total(&mut bytes, 4096);
        push_block(&mut bytes, "pc.ram", 4096);
        for kind in [PART, PART, END] {
            push_flush(&mut bytes);
            push_end(&mut bytes);
            push_footer(&mut bytes, 2);
            push_ram_more(&mut bytes, kind, 2);
        }
        push_zero_page(&mut bytes, "pc.ram", 0);
        push_flush(&mut bytes);
        push_end(&mut bytes);
        push_footer(&mut bytes, 2);
        bytes.extend(crate::Tail::empty(4096).bytes());
        let mut stopped = Vec::new();
        let followed = follow(
            bytes.as_slice(),
            &Limits::default(),
            &MemoryBudget::default(),
            |now| {
                stopped.push(now.stopped.is_some());
            },
        );
        assert_eq!(followed.unwrap().flushes, 4);
        assert_eq!(stopped, [false, false, false, true]);
        bytes.truncate(40);
        assert!(
            follow(
                bytes.as_slice(),
                &Limits::default(),
                &MemoryBudget::default(),
                |_| ()
            )
            .is_err()
        );
    }
}
