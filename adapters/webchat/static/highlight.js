// Colours for code: one table of languages, one scanner. Wrong colours are possible, wrong text is not.

const LONGEST = 60_000; // characters; beyond that code stays plain

const DOUBLE = String.raw`"(?:\\[^]|[^"\\\n])*"?`;
const SINGLE = String.raw`'(?:\\[^]|[^'\\\n])*'?`;
const BACKTICK = "`(?:\\\\[^]|[^`\\\\])*`?";
const SLASHES = String.raw`//.*|/\*[^]*?(?:\*/|(?![^]))`;
// (?![^]) is the end of the text: $ is the end of every line here.
const HASH = String.raw`#.*`;
const NUMBER = String.raw`\b(?:0[xX][\da-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)\w*`;
const WORD = String.raw`[A-Za-z_$][\w$]*`;

const words = (text) => new Set(text.split(" "));

const C_LIKE = { comment: SLASHES, string: `${DOUBLE}|${SINGLE}`, meta: String.raw`^[ \t]*#\w+.*|@\w+` };

const LANGUAGES = {
  python: {
    comment: HASH,
    string: String.raw`[rRbBfFuU]{0,2}(?:"""[^]*?(?:"""|(?![^]))|'''[^]*?(?:'''|(?![^]))|${DOUBLE}|${SINGLE})`,
    meta: String.raw`^[ \t]*@[\w.]+`,
    keywords: words("and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return try while with yield"),
    literals: words("True False None self cls int float str bytes bool list dict set tuple object type"),
  },
  javascript: {
    comment: SLASHES,
    string: `${DOUBLE}|${SINGLE}|${BACKTICK}`,
    meta: String.raw`@\w+`,
    keywords: words("abstract as async await break case catch class const continue declare default delete do else enum export extends finally for from function get if implements import in infer instanceof interface is keyof let namespace new of private protected public readonly return satisfies set static super switch throw try type typeof var void while with yield"),
    literals: words("true false null undefined NaN Infinity this any boolean number string unknown never object"),
  },
  json: { comment: SLASHES, property: String.raw`${DOUBLE}(?=\s*:)`, string: DOUBLE, literals: words("true false null") },
  bash: {
    comment: String.raw`(?:^|[ \t])#.*`,
    string: `${DOUBLE}|'[^']*'?`,
    meta: String.raw`\$(?:\{[^}\n]*\}?|\w+|[@#?*!$-])`,
    property: String.raw`(?:^|[ \t])--?[A-Za-z][\w-]*`,
    keywords: words("if then else elif fi for while until do done case esac in function select return exit break continue local export readonly declare set unset shift trap source alias sudo"),
    literals: words("echo printf cd ls cat grep sed awk find xargs curl git docker npm pip python make mkdir rm cp mv chmod chown tar ssh kill true false test read"),
  },
  css: {
    comment: String.raw`/\*[^]*?(?:\*/|(?![^]))`,
    string: `${DOUBLE}|${SINGLE}`,
    meta: String.raw`@[\w-]+|![a-z]+`,
    property: String.raw`--[\w-]+|[a-z-]+(?=\s*:\s)`,
    number: String.raw`#[\da-fA-F]{3,8}\b|-?(?:\d+\.)?\d+(?:%|[a-z]+)?`,
    word: String.raw`[.#]?[A-Za-z_-][\w-]*`,
  },
  sql: {
    comment: String.raw`--.*|/\*[^]*?(?:\*/|(?![^]))`,
    string: `'(?:''|[^'])*'?|${DOUBLE}`,
    folded: true,
    keywords: words("add all alter and as asc begin between by cascade case check column commit constraint create cross database default delete desc distinct drop else end except exists explain foreign from full group having if in index inner insert intersect into is join key lateral left like limit not offset on or order outer over partition primary recursive references returning right rollback select set table then transaction trigger truncate union unique update using values view when where window with"),
    literals: words("true false null int integer bigint smallint serial text varchar char boolean date time timestamp timestamptz numeric decimal real double json jsonb uuid blob"),
  },
  go: {
    ...C_LIKE,
    string: `${DOUBLE}|${SINGLE}|${BACKTICK}`,
    keywords: words("break case chan const continue default defer else fallthrough for func go goto if import interface map package range return select struct switch type var"),
    literals: words("true false nil iota any bool byte error float32 float64 int int8 int16 int32 int64 rune string uint uint8 uint16 uint32 uint64 uintptr append cap close copy delete len make new panic print println recover"),
  },
  rust: {
    ...C_LIKE,
    string: String.raw`b?r?#*${DOUBLE}#*|b?'(?:\\[^]|[^'\\\n])'`,
    meta: String.raw`#!?\[[^\]\n]*\]?|'[a-z_]\w*|\b[a-z_]\w*!`,
    keywords: words("as async await break const continue crate dyn else enum extern fn for if impl in let loop match mod move mut pub ref return static struct super trait type union unsafe use where while"),
    literals: words("true false self Self bool char f32 f64 i8 i16 i32 i64 i128 isize str u8 u16 u32 u64 u128 usize Some None Ok Err"),
  },
  java: {
    ...C_LIKE,
    keywords: words("abstract assert break case catch class companion const continue data default do else enum extends final finally for fun if implements import in instanceof interface internal is lateinit native new object open operator out override package permits private protected public record return sealed static strictfp super suspend switch synchronized throw throws transient try val var volatile when while yield"),
    literals: words("true false null this boolean byte char double float int long short void String"),
  },
  c: {
    ...C_LIKE,
    keywords: words("alignas alignof async auto await base break case catch class concept const constexpr continue co_await co_return co_yield decltype default delete do else enum explicit export extern for foreach friend get goto if in inline interface internal is namespace new noexcept operator out override params private protected public readonly ref register requires return sealed set sizeof static static_assert static_cast struct switch template throw try typedef typename union using var virtual void volatile when where while yield"),
    literals: words("true false nullptr null NULL this bool char double float int long short signed unsigned size_t wchar_t string object int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t std"),
  },
  php: {
    comment: `${SLASHES}|${HASH}`,
    string: `${DOUBLE}|${SINGLE}`,
    meta: String.raw`\$\w+|<\?php|\?>`,
    keywords: words("abstract and as begin break case catch class clone const continue declare def default do echo else elseif elsif end ensure enum extends final finally fn for foreach function global if implements include instanceof interface match module namespace new next or print private protected public readonly require require_once rescue return static switch then throw trait try unless until use var when while yield"),
    literals: words("true false null nil this self parent array string int float bool void"),
  },
  yaml: {
    comment: String.raw`(?:^|[ \t])[#;].*`,
    property: String.raw`^[ \t]*(?:- +)?[\w./-]+(?=[ \t]*[:=])`,
    meta: String.raw`^\[.*\]|[&*]\w+|^---`,
    string: `${DOUBLE}|${SINGLE}`,
    literals: words("true false null yes no on off"),
  },
  docker: {
    comment: String.raw`^[ \t]*#.*`,
    string: `${DOUBLE}|${SINGLE}`,
    meta: String.raw`\$(?:\{[^}\n]*\}?|\w+)`,
    keywords: words("FROM AS RUN CMD LABEL EXPOSE ENV ADD COPY ENTRYPOINT VOLUME USER WORKDIR ARG ONBUILD STOPSIGNAL HEALTHCHECK SHELL"),
  },
  diff: { inserted: String.raw`^\+.*`, deleted: String.raw`^-.*`, meta: String.raw`^(?:@@|diff|index).*`, word: String.raw`.+` },
  html: {
    comment: String.raw`<!--[^]*?(?:-->|(?![^]))`,
    keyword: String.raw`</?[A-Za-z][\w:.-]*|/?>`,
    meta: String.raw`<![^>]*>?|&#?\w+;`,
    property: String.raw`[\w:@.-]+(?=\s*=\s*["'{])`,
    string: String.raw`"[^"<>]*"|'[^'<>]*'(?=[\s/>])`,
    number: "(?!)",
    word: String.raw`[\w-]+`,
    plain: true,
  },
};

const ALIASES = {
  py: "python", python3: "python", js: "javascript", jsx: "javascript", mjs: "javascript", ts: "javascript",
  tsx: "javascript", typescript: "javascript", node: "javascript", json5: "json", jsonc: "json", sh: "bash",
  shell: "bash", zsh: "bash", console: "bash", terminal: "bash", scss: "css", less: "css", sass: "css",
  postgresql: "sql", postgres: "sql", mysql: "sql", sqlite: "sql", plsql: "sql", golang: "go", rs: "rust",
  kotlin: "java", kt: "java", scala: "java", groovy: "java", dart: "java", "c++": "c", cpp: "c", cc: "c", h: "c",
  hpp: "c", csharp: "c", cs: "c", "c#": "c", objc: "c", swift: "rust", rb: "php", ruby: "php", yml: "yaml",
  toml: "yaml", ini: "yaml", env: "yaml", properties: "yaml", conf: "yaml", dockerfile: "docker", patch: "diff",
  xml: "html", svg: "html", vue: "html", svelte: "html", xhtml: "html",
};

const ORDER = ["comment", "inserted", "deleted", "property", "string", "keyword", "meta", "number", "word"];
const scanners = new Map();

function scanner(name) {
  if (!scanners.has(name)) {
    const language = { number: NUMBER, word: WORD, ...LANGUAGES[name] };
    const parts = ORDER.filter((kind) => language[kind]).map((kind) => `(?<${kind}>${language[kind]})`);
    scanners.set(name, new RegExp(parts.join("|"), "gm"));
  }
  return scanners.get(name);
}

// What a word is: by the tables, else a call, else a type by its capital.
function kindOfWord(language, word, next) {
  const key = language.folded ? word.toLowerCase() : word;
  if (language.plain) return "";
  if (language.keywords?.has(key)) return "keyword";
  if (language.literals?.has(key)) return "literal";
  if (next === "(") return "call";
  return /^[A-Z]\w*[a-z]/.test(word) ? "type" : "";
}

// Yield [kind, text] for the whole of `code`; kind "" is plain.
export function* tokens(code, name) {
  const id = ALIASES[name] ?? name;
  const language = Object.hasOwn(LANGUAGES, id) && code.length <= LONGEST ? LANGUAGES[id] : null;
  let end = 0;
  for (const match of language ? code.matchAll(scanner(id)) : []) {
    const [kind, text] = Object.entries(match.groups).find(([, value]) => value !== undefined);
    if (!text) continue;
    if (match.index > end) yield ["", code.slice(end, match.index)];
    end = match.index + text.length;
    yield [kind === "word" ? kindOfWord(language, text, code[end]) : kind, text];
  }
  if (end < code.length) yield ["", code.slice(end)];
}

// Return the coloured code as nodes.
export function highlight(code, name) {
  const fragment = document.createDocumentFragment();
  for (const [kind, text] of tokens(code, name)) {
    if (!kind) fragment.append(text);
    else {
      const span = document.createElement("span");
      span.className = `t-${kind}`;
      span.textContent = text;
      fragment.append(span);
    }
  }
  return fragment;
}
