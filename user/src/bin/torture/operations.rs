//! The operations. Each is given a run of units, does its one thing to those that allow it, and records what
//! they must be from then on.

use core::ops::Range;

use user::{
    GRANULES,
    model::hash,
    sys::{self, Advice, Errno, Prot, TagCheck},
};

use crate::{unit::Unit, walk::Walk};

/// An operation on a run of units.
pub type Operation = fn(&mut Walk, Range<usize>) -> Result<(), Errno>;

/// Name, weight in the choice, and what it does.
pub const OPERATIONS: [(&str, u32, Operation); 13] = [
    ("write data", 24, write_data),
    ("write tags", 16, write_tags),
    ("store a word", 8, store_word),
    ("check", 16, check),
    ("tagged pointer", 4, tagged_pointer),
    ("page out", 8, page_out),
    ("cool down", 4, cool_down),
    ("forget", 4, forget),
    ("mprotect", 6, protect),
    ("mprotect back", 6, protect_back),
    ("add PROT_MTE", 2, add_mte),
    ("munmap", 2, unmap),
    ("mmap over", 4, map_over),
];

fn write_data(walk: &mut Walk, range: Range<usize>) -> Result<(), Errno> {
    let contents = walk.new_number();
    for unit in range {
        let record = walk.ready(unit)?;
        if record.writable {
            let record = Unit { contents, store: 0, ..record };
            for page in walk.pages(unit) {
                walk.expect(&record, page);
                walk.area.write(page, &walk.contents.words);
            }
            walk.set(unit, record);
        }
    }
    Ok(())
}

fn write_tags(walk: &mut Walk, range: Range<usize>) -> Result<(), Errno> {
    let tags = walk.new_number();
    for unit in range {
        let record = walk.ready(unit)?;
        if record.writable && record.mte {
            let record = Unit { tags, ..record };
            for page in walk.pages(unit) {
                walk.expect(&record, page);
                walk.area.set_tags(page, &walk.contents.tags);
            }
            walk.set(unit, record);
        }
    }
    Ok(())
}

/// A single store is what makes one page of a larger folio, or one that was read in, dirty again.
fn store_word(walk: &mut Walk, range: Range<usize>) -> Result<(), Errno> {
    let store = walk.new_number();
    for unit in range {
        let record = walk.ready(unit)?;
        if record.writable {
            // The record knows of one store only, so an earlier one is undone first.
            if record.store != 0 {
                let (page, word, _) = walk.store_of(unit, record.store);
                walk.expect(&Unit { store: 0, ..record }, page);
                walk.area.store(page, word, walk.contents.words[word]);
            }
            let (page, word, value) = walk.store_of(unit, store);
            walk.area.store(page, word, value);
            walk.set(unit, Unit { store, ..record });
        }
    }
    Ok(())
}

fn check(walk: &mut Walk, range: Range<usize>) -> Result<(), Errno> {
    for unit in range {
        walk.check(unit)?;
    }
    Ok(())
}

/// Load and store through a pointer with the granule's tag, while a mismatch would be a fault.
fn tagged_pointer(walk: &mut Walk, range: Range<usize>) -> Result<(), Errno> {
    if !walk.has_mte {
        return Ok(());
    }
    sys::set_tag_check(TagCheck::Sync)?;
    for unit in range {
        let record = walk.ready(unit)?;
        if record.writable && record.mte {
            let page = walk.pages(unit).start;
            walk.expect(&record, page);
            let granule = hash(u64::from(record.tags), unit as u64, 64) as usize % GRANULES;
            let (word, tag) = (granule * 2, walk.contents.tags[granule]);
            let value = walk.area.load_tagged(page, word, tag);
            walk.area.store_tagged(page, word, tag, value);
            walk.tally.value(page, word, value, walk.contents.words[word]);
        }
    }
    sys::set_tag_check(TagCheck::None)
}

fn page_out(walk: &mut Walk, mut range: Range<usize>) -> Result<(), Errno> {
    while let Some(((), units)) = walk.next_run(&mut range, |unit| unit.mapped.then_some(())) {
        walk.area.advise(walk.pages_of(&units), Advice::PageOut)?;
    }
    Ok(())
}

fn cool_down(walk: &mut Walk, mut range: Range<usize>) -> Result<(), Errno> {
    while let Some(((), units)) = walk.next_run(&mut range, |unit| unit.mapped.then_some(())) {
        walk.area.advise(walk.pages_of(&units), Advice::Cold)?;
    }
    Ok(())
}

/// MADV_DONTNEED: data and tags are zero from here on, whatever the permission.
fn forget(walk: &mut Walk, mut range: Range<usize>) -> Result<(), Errno> {
    while let Some(((), units)) = walk.next_run(&mut range, |unit| unit.mapped.then_some(())) {
        walk.area.advise(walk.pages_of(&units), Advice::DontNeed)?;
        walk.update(units, |record| Unit { contents: 0, tags: 0, store: 0, ..record });
    }
    Ok(())
}

fn protect(walk: &mut Walk, range: Range<usize>) -> Result<(), Errno> {
    let access = [Prot::NONE, Prot::READ, Prot::READ_WRITE][walk.random(3)];
    set_access(walk, range, access)
}

fn protect_back(walk: &mut Walk, range: Range<usize>) -> Result<(), Errno> {
    set_access(walk, range, Prot::READ_WRITE)
}

fn set_access(walk: &mut Walk, mut range: Range<usize>, access: Prot) -> Result<(), Errno> {
    let (readable, writable) = (access != Prot::NONE, access == Prot::READ_WRITE);
    let change = |record| Unit { readable, writable, ..record };
    while let Some((tagging, units)) = walk.next_run(&mut range, |unit| unit.mapped.then_some(unit.tagging())) {
        walk.area.protect(walk.pages_of(&units), access | tagging)?;
        walk.update(units, change);
    }
    Ok(())
}

/// PROT_MTE for memory that may hold data already: its tags must read zero then.
fn add_mte(walk: &mut Walk, mut range: Range<usize>) -> Result<(), Errno> {
    if !walk.has_mte {
        return Ok(());
    }
    let change = |record| Unit { mte: true, ..record };
    while let Some(((readable, writable), units)) =
        walk.next_run(&mut range, |unit| (unit.mapped && !unit.mte).then_some((unit.readable, unit.writable)))
    {
        let prot = Unit { readable, writable, ..Unit::mapped(Prot::MTE) }.prot();
        walk.area.protect(walk.pages_of(&units), prot)?;
        walk.update(units, change);
    }
    Ok(())
}

fn unmap(walk: &mut Walk, range: Range<usize>) -> Result<(), Errno> {
    walk.area.unmap(walk.pages_of(&range))?;
    walk.update(range, |_| Unit::HOLE);
    Ok(())
}

/// mmap with MAP_FIXED, over holes and mapped memory alike.
fn map_over(walk: &mut Walk, range: Range<usize>) -> Result<(), Errno> {
    let tagging = if walk.has_mte && walk.random(4) != 0 { Prot::MTE } else { Prot::NONE };
    walk.area.remap(walk.pages_of(&range), Prot::READ_WRITE | tagging)?;
    walk.update(range, |_| Unit::mapped(tagging));
    Ok(())
}
