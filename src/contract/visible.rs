//! Which characters of a text a person can see. In the audit a text must not look like another one, and one that
//! is shown must not change how the text around it is shown. Knows nothing of what the texts say.
//!
//! Two invisible characters are letters' neighbours in ordinary words: U+200C (as in Persian names) and U+200D (as
//! in Sinhala ones). They are visible by what they do, so they are accepted only where Unicode says that they do
//! something ([UAX #31](https://www.unicode.org/reports/tr31/#Layout_and_Format_Control_Characters)):
//! never in or beside Latin letters, and not at an end.

/// The position of the first character that nobody can see, counted from 0.
pub(crate) fn first_invisible(text: &str) -> Option<usize> {
    let mut before = None;
    let mut rest = text.chars().peekable();
    let mut position = 0;
    while let Some(c) = rest.next() {
        if !is_seen(before, c, rest.peek().copied()) {
            return Some(position);
        }
        before = Some(c);
        position += 1;
    }
    None
}

/// The text without the characters that nobody can see, of at most `max` characters.
pub(crate) fn visible_part(text: &str, max: usize) -> String {
    let mut before = None;
    let mut rest = text.chars().peekable();
    let seen = std::iter::from_fn(|| {
        loop {
            let c = rest.next()?;
            if is_seen(before, c, rest.peek().copied()) {
                before = Some(c);
                return Some(c);
            }
        }
    });
    let part: String = seen.take(max).collect();
    // What it joins may have been cut.
    part.trim_end_matches(['\u{200c}', '\u{200d}']).to_owned()
}

/// The text on one line of a terminal: line breaks and tabs are spaces, and what nobody can see is left out, so also
/// what would begin an escape sequence.
pub(crate) fn one_line(text: &str) -> String {
    let is_break = |c| matches!(c, '\t'..='\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let line: String = text.chars().map(|c| if is_break(c) { ' ' } else { c }).collect();
    visible_part(&line, usize::MAX)
}

/// The position of the first letter that looks like one of the letters before it in its word and is another one, as
/// the Cyrillic letter in a Latin `admin`; counted from 0.
pub(crate) fn first_foreign_letter(text: &str) -> Option<usize> {
    let mut of_word = (false, false);
    text.chars().position(|c| {
        if !c.is_alphabetic() {
            of_word = (false, false);
        }
        of_word.0 |= is_latin(c);
        of_word.1 |= looks_latin(c);
        of_word == (true, true)
    })
}

/// A letter of the Latin script.
fn is_latin(c: char) -> bool {
    c.is_ascii_alphabetic()
        || matches!(c, '\u{c0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}') && c.is_alphabetic()
}

/// A Cyrillic letter, or a Greek one that looks Latin; others are in words with Latin ones, for example units.
fn looks_latin(c: char) -> bool {
    matches!(c, '\u{400}'..='\u{52f}') || "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧονϲϳ".contains(c)
}

/// Whether a person sees this character, or what it does, between these two.
fn is_seen(before: Option<char>, c: char, after: Option<char>) -> bool {
    match (before, c, after) {
        // The selector of an emoji's form, and what makes one emoji of two.
        (Some(before), '\u{fe0f}', _) => is_emoji(before),
        (Some(before), '\u{200d}', Some(after)) if is_emoji(after) => {
            is_emoji(before) || before == '\u{fe0f}'
        }
        (Some(before), '\u{200c}', Some(after)) => {
            breaks_a_conjunct(before, after) || breaks_a_join(before, after)
        }
        (Some(before), '\u{200d}', Some(after)) => breaks_a_conjunct(before, after),
        _ => !is_invisible(c),
    }
}

/// Whether nothing is shown for a character: it is a control, formatting, private or unassigned one (Unicode's
/// categories Cc, Cf, Zl, Zp, Co and Cn, and the property Default_Ignorable_Code_Point).
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}' | '\u{891}' | '\u{8e2}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{fffe}' | '\u{ffff}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{10ffff}')
}

/// Whether a character is a symbol of the blocks with emoji.
fn is_emoji(c: char) -> bool {
    matches!(c,
        '\u{203c}' | '\u{2049}' | '\u{2122}' | '\u{2139}' | '\u{2194}'..='\u{21aa}' | '\u{231a}'..='\u{23ff}'
        | '\u{24c2}' | '\u{25aa}'..='\u{27bf}' | '\u{2934}'..='\u{2935}' | '\u{2b05}'..='\u{2b55}'
        | '\u{3030}' | '\u{303d}' | '\u{3297}' | '\u{3299}' | '\u{1f000}'..='\u{1faff}')
}

/// Whether the first is a virama of an Indic script, or of Sinhala, and the second a letter that would form a
/// conjunct with what is before it.
fn breaks_a_conjunct(virama: char, letter: char) -> bool {
    let (virama, letter) = (u32::from(virama), u32::from(letter));
    match virama {
        0x0dca => matches!(letter, 0x0d85..=0x0dc6),
        // Each of these scripts has a block of 128 characters, in the same order.
        0x094d | 0x09cd | 0x0a4d | 0x0acd | 0x0b4d | 0x0bcd | 0x0c4d | 0x0ccd | 0x0d4d => {
            virama >> 7 == letter >> 7 && matches!(letter & 0x7f, 0x05..=0x39)
        }
        _ => false,
    }
}

/// Whether both are letters of the Arabic script that would be written as one.
fn breaks_a_join(one: char, next: char) -> bool {
    joins_the_next(one) && (joins_the_next(next) || joins_only_the_previous(next))
}

/// Unicode's Joining_Type D, in the block of Arabic.
fn joins_the_next(c: char) -> bool {
    matches!(c,
        '\u{620}' | '\u{626}' | '\u{628}' | '\u{62a}'..='\u{62e}' | '\u{633}'..='\u{63f}'
        | '\u{641}'..='\u{647}' | '\u{649}' | '\u{64a}' | '\u{66e}' | '\u{66f}'
        | '\u{678}'..='\u{687}' | '\u{69a}'..='\u{6bf}' | '\u{6c1}' | '\u{6c2}' | '\u{6cc}'
        | '\u{6ce}' | '\u{6d0}' | '\u{6d1}' | '\u{6fa}'..='\u{6fc}' | '\u{6ff}')
}

/// Unicode's Joining_Type R, in the block of Arabic.
fn joins_only_the_previous(c: char) -> bool {
    matches!(c,
        '\u{622}'..='\u{625}' | '\u{627}' | '\u{629}' | '\u{62f}'..='\u{632}' | '\u{648}'
        | '\u{671}'..='\u{673}' | '\u{675}'..='\u{677}' | '\u{688}'..='\u{699}' | '\u{6c0}'
        | '\u{6c3}'..='\u{6cb}' | '\u{6cd}' | '\u{6cf}' | '\u{6d2}' | '\u{6d3}' | '\u{6d5}'
        | '\u{6ee}' | '\u{6ef}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joiner_is_accepted_where_it_changes_what_is_seen() {
        for name in [
            // Persian: a name, a verb and a plural.
            "\u{639}\u{644}\u{6cc}\u{200c}\u{631}\u{636}\u{627}",
            "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
            "\u{6a9}\u{62a}\u{627}\u{628}\u{200c}\u{647}\u{627}",
            // Sinhala, Devanagari and Malayalam.
            "\u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}",
            "\u{915}\u{94d}\u{200c}\u{937}",
            "\u{915}\u{94d}\u{200d}\u{937}",
            "\u{d28}\u{d4d}\u{200d}\u{d2e}",
            "\u{1f468}\u{200d}\u{1f680}",
            "\u{2764}\u{fe0f}\u{200d}\u{1f525}",
            "\u{1f469}\u{1f3fd}\u{200d}\u{1f692}",
        ] {
            assert_eq!(first_invisible(name), None, "{name}");
            assert_eq!(visible_part(name, 99), name);
        }
    }

    #[test]
    fn a_joiner_that_nobody_sees_is_not_accepted() {
        let joiners = ['\u{200c}', '\u{200d}'];
        for (before, after) in [
            ("ad", "min"),
            ("", "admin"),
            ("admin", ""),
            ("admin ", "\u{628}"),
            ("\u{628}", " admin"),
            ("\u{628}", "admin"),
            ("admin", "\u{628}"),
            // Letters that are not joined anyway, and ends of words.
            ("\u{62f}", "\u{631}"),
            ("\u{628}", "\u{621}"),
            ("\u{628}", ""),
            ("", "\u{628}"),
            ("\u{915}\u{94d}", ""),
            ("\u{915}\u{94d}", " \u{937}"),
            ("\u{915}\u{94d}", "\u{93e}"),
            ("\u{915}", "\u{937}"),
            // A virama and a letter of another script.
            ("\u{915}\u{94d}", "\u{995}"),
            ("\u{1f680}", "admin"),
            ("admin\u{2013}", "7"),
            ("admin\u{a0}", "\u{1f680}"),
        ] {
            for joiner in joiners {
                let text = format!("{before}{joiner}{after}");
                assert_eq!(first_invisible(&text), Some(before.chars().count()), "{text:?}");
                assert_eq!(visible_part(&text, 99), format!("{before}{after}"));
            }
        }
        // A zero width joiner does not separate letters of Arabic.
        assert!(first_invisible("\u{628}\u{200d}\u{628}").is_some());
        let twice = "\u{628}\u{200c}\u{200c}\u{628}";
        assert_eq!(first_invisible(twice), Some(1));
        assert_eq!(visible_part(twice, 99), "\u{628}\u{200c}\u{628}");
    }

    #[test]
    fn a_word_has_no_letters_of_another_script_that_look_like_its_own() {
        for good in [
            "admin",
            "админ",
            "300 μs",
            "5 kΩ",
            "σx",
            "рестарт web-подов",
            "über",
            "管理 web",
            "a\u{301}b",
        ] {
            assert_eq!(first_foreign_letter(good), None, "{good}");
        }
        for (bad, at) in
            [("\u{430}dmin", 1), ("on-call \u{410}dmin", 9), ("adm\u{456}n", 3), ("\u{391}dmin", 1)]
        {
            assert_eq!(first_foreign_letter(bad), Some(at), "{bad}");
        }
    }

    #[test]
    fn a_line_has_no_breaks_and_begins_no_escape_sequence() {
        assert_eq!(one_line("a\r\nb\tc\u{85}d\u{2028}e"), "a  b c d e");
        assert_eq!(one_line("\u{1b}[2Ja\u{9b}1mb\u{7}\u{202e}\0c"), "[2Ja1mbc");
        assert_eq!(one_line("Deployment 'web' restarted."), "Deployment 'web' restarted.");
    }

    #[test]
    fn a_part_that_is_cut_is_visible_too() {
        let name = "\u{628}\u{200c}\u{628}";
        assert_eq!(visible_part(name, 2), "\u{628}");
        assert_eq!(visible_part("a\u{1b}[31mb\u{202e}c", 99), "a[31mbc");
    }
}
