//! Reads Rust source as text: what is code, what is comment, what is literal, and which tokens,
//! functions and paths the code holds.
//!
//! No grammar, only what the rules ask for. Each character gets a [`Class`]; `code` and `comments`
//! are the text with all other classes blanked, so that a column or a line means the same in each.

/// What a character belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Code,
    Comment,
    Literal,
}

/// One word (identifier, keyword, number), `::`, or one other character of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// Index of the line, from 0.
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// A function, from the line of its `fn` to that of its closing brace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// One file of the repository.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the root, with `/` between components.
    pub(crate) path: String,
    pub(crate) lines: Vec<String>,
    /// The lines without comments and literals; empty for what is not Rust.
    pub(crate) code: Vec<String>,
    /// The lines without code and literals; everything for what is not Rust.
    pub(crate) comments: Vec<String>,
    pub(crate) tokens: Vec<Token>,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let lines: Vec<String> = text.lines().map(String::from).collect();
        let (code, comments) = if path.ends_with(".rs") {
            let chars: Vec<char> = text.chars().collect();
            let classes = classify(&chars);
            (only(Class::Code, &chars, &classes), only(Class::Comment, &chars, &classes))
        } else {
            (Vec::new(), lines.clone())
        };
        let tokens = tokens(&code);
        Self { path: path.to_string(), lines, code, comments, tokens }
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The text of the token at `at`, or nothing past the end.
    pub(crate) fn token(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| &token.text)
    }

    /// Every function with a body; a nested one counts on its own and in its parent.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let named = |at: &usize| self.token(*at) == "fn" && is_word(self.token(at + 1));
        (0..self.tokens.len())
            .filter(named)
            .filter_map(|at| {
                let close = self.body_end(at + 2)?;
                let (first, last) = (self.tokens[at].line, self.tokens[close].line);
                Some(Function { name: self.token(at + 1).to_string(), first, last })
            })
            .collect()
    }

    /// From inside a signature to the brace that closes the body; `None` if a `;` comes first.
    fn body_end(&self, start: usize) -> Option<usize> {
        let (mut round, mut curly) = (0_i32, 0_i32);
        for at in start..self.tokens.len() {
            match self.token(at) {
                "(" | "[" => round += 1,
                ")" | "]" => round -= 1,
                "{" => curly += 1,
                "}" => {
                    curly -= 1;
                    if curly == 0 && round == 0 {
                        return Some(at);
                    }
                }
                ";" if curly == 0 && round == 0 => return None,
                _ => {}
            }
        }
        None
    }

    /// Every path in the code with the line of its last segment; `use` groups are multiplied out,
    /// a lone identifier is a path of one segment.
    pub(crate) fn paths(&self) -> Vec<(usize, Vec<String>)> {
        let (mut found, mut at) = (Vec::new(), 0);
        while at < self.tokens.len() {
            let inside = at > 1 && self.token(at - 1) == "::" && continues(self.token(at - 2));
            if is_word(self.token(at)) && !inside {
                at = self.path(at, &[], &mut found);
            } else {
                at += 1;
            }
        }
        found
    }

    /// Reads the path at `at` behind `prefix` and returns the index after it.
    fn path(
        &self,
        mut at: usize,
        prefix: &[String],
        found: &mut Vec<(usize, Vec<String>)>,
    ) -> usize {
        let mut segments = prefix.to_vec();
        loop {
            let line = self.tokens[at].line;
            segments.push(self.token(at).to_string());
            at += 1;
            let goes_on = self.token(at) == "::" && continues(self.token(at - 1));
            if goes_on && is_word(self.token(at + 1)) {
                at += 1;
                continue;
            }
            if goes_on && self.token(at + 1) == "{" {
                return self.group(at + 2, &segments, found);
            }
            found.push((line, segments));
            return at;
        }
    }

    /// Reads the rest of a `use` group, each member behind `prefix`.
    fn group(
        &self,
        mut at: usize,
        prefix: &[String],
        found: &mut Vec<(usize, Vec<String>)>,
    ) -> usize {
        while at < self.tokens.len() && self.token(at) != "}" {
            at = match self.token(at) {
                "as" => at + 2,
                word if is_word(word) => self.path(at, prefix, found),
                _ => at + 1,
            };
        }
        at + 1
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(is_word_char)
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a `::` behind this token goes on with a path, rather than starting one at the root.
fn continues(before: &str) -> bool {
    const OPENERS: &[&str] =
        &["use", "as", "dyn", "impl", "for", "in", "return", "match", "if", "where", "mut", "else"];
    before == ">" || is_word(before) && !OPENERS.contains(&before)
}

/// The text in lines, with a space for every character of another class.
fn only(class: Class, chars: &[char], classes: &[Class]) -> Vec<String> {
    let text: String = chars
        .iter()
        .zip(classes)
        .map(|(c, of)| if *c == '\n' || *of == class { *c } else { ' ' })
        .collect();
    text.lines().map(String::from).collect()
}

fn tokens(code: &[String]) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (line, text) in code.iter().enumerate() {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if is_word_char(first) {
                rest.find(|c| !is_word_char(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            tokens.push(Token { line, text: rest[..length].to_string() });
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

fn classify(chars: &[char]) -> Vec<Class> {
    let mut classes = Vec::with_capacity(chars.len());
    while classes.len() < chars.len() {
        let at = classes.len();
        let (end, class) = lexeme(chars, at);
        classes.resize(end.clamp(at + 1, chars.len()), class);
    }
    classes
}

/// The end and the class of what starts at `at`.
fn lexeme(chars: &[char], at: usize) -> (usize, Class) {
    let peek = |ahead: usize| chars.get(at + ahead).copied().unwrap_or('\n');
    match (peek(0), peek(1)) {
        ('/', '/') => (find(chars, at, |c| c == '\n'), Class::Comment),
        ('/', '*') => (comment_end(chars, at), Class::Comment),
        ('"', _) => (quoted_end(chars, at + 1, '"'), Class::Literal),
        ('\'', '\\') => (quoted_end(chars, at + 1, '\''), Class::Literal),
        // Any other quote opens a lifetime.
        ('\'', _) if peek(2) == '\'' => (at + 3, Class::Literal),
        (first, _) if is_word_char(first) => {
            let end = find(chars, at, |c| !is_word_char(c));
            let word: String = chars[at..end].iter().collect();
            let raw = matches!(word.as_str(), "r" | "br" | "cr");
            match raw_end(chars, end) {
                Some(raw_end) if raw => (raw_end, Class::Literal),
                _ => (end, Class::Code),
            }
        }
        _ => (at + 1, Class::Code),
    }
}

fn find(chars: &[char], from: usize, stop: impl Fn(char) -> bool) -> usize {
    chars[from..].iter().position(|c| stop(*c)).map_or(chars.len(), |ahead| from + ahead)
}

/// Block comments nest.
fn comment_end(chars: &[char], from: usize) -> usize {
    let (mut depth, mut at) = (0, from);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

/// Behind the closing `quote`; `from` is behind the opening one.
fn quoted_end(chars: &[char], from: usize, quote: char) -> usize {
    let mut at = from;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Behind a raw string whose hashes (or quote) start at `from`; `None` if there is none.
fn raw_end(chars: &[char], from: usize) -> Option<usize> {
    let open = find(chars, from, |c| c != '#');
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let hashes = open - from;
    let closes = |at: &usize| {
        chars[*at] == '"'
            && chars[at + 1..].len() >= hashes
            && chars[at + 1..at + 1 + hashes].iter().all(|c| *c == '#')
    };
    Some((open + 1..chars.len()).find(closes).map_or(chars.len(), |at| at + 1 + hashes))
}
