/* json.h: a strict JSON reader (RFC 8259) for the tools of monet.h.

   A document becomes one array of 8-byte tokens in the order of the text; memory is the text plus
   at most four times its size. Nothing recurses. Strings are unescaped in place and end with a NUL
   that their size does not count (they may hold others). Refused, with the byte offset: invalid
   UTF-8, lone surrogates, control characters in strings, text after the end, NaN and Infinity,
   numbers longer than 64 characters, nesting deeper than 64, and a key that occurs twice in one
   object. Numbers are read here, not by strtod, which obeys the locale.

       json_doc doc;
       json_each it;
       if (!json_load(&doc, "config.json", 1 << 20, &err)) ...
       uint32_t map = json_find(&doc, 0, "weight_map");     value 0 is the root
       for (it = json_begin(&doc, map); json_step(&doc, &it);)
           ... json_string(&doc, it.key, &size), it.value ...
       json_free(&doc);

   A value is its index in the token array; JSON_NONE, which stands for "absent", may be given
   to every function and gives the answer for a value of the wrong type.                        */
#ifndef TOOL_JSON_H
#define TOOL_JSON_H

#include "common.h"

#include <float.h>
#include <math.h>

#define JSON_NONE UINT32_MAX
#define JSON_MAX_DEPTH 64
#define JSON_MAX_NUMBER 64              /* characters */
#define JSON_MAX_BYTES (UINT32_C(1) << 28)
#define JSON_MAX_TOKENS (UINT32_C(1) << 25)

typedef enum json_type {
    JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT
} json_type;

typedef struct json_token {
    uint32_t head; /* offset in the text * 8 + type; of a string, the offset after the quote */
    uint32_t tail; /* string, number: bytes; array, object: index of the token after its last */
} json_token;

typedef struct json_doc {
    char       *text;   /* unescaped strings stand where the escaped ones stood */
    json_token *tokens;
    uint32_t    n_tokens;
    bool        owns_text;
} json_doc;

typedef struct json_each { /* a walk over the members of an object or the elements of an array */
    uint32_t key;          /* JSON_NONE in an array */
    uint32_t value;
    uint32_t next, end;
    bool     object;
} json_each;

/* ---- json: values ---------------------------------------------------------------------------- */

static TOOL_UNUSED json_type json_typeof(const json_doc *doc, uint32_t value)
{
    return value < doc->n_tokens ? (json_type)(doc->tokens[value].head & 7) : JSON_NULL;
}

/* Offset in the file, for messages. */
static TOOL_UNUSED uint32_t json_offset(const json_doc *doc, uint32_t value)
{
    return value < doc->n_tokens ? doc->tokens[value].head >> 3 : 0;
}

static TOOL_UNUSED uint32_t json__after(const json_doc *doc, uint32_t value)
{
    return json_typeof(doc, value) >= JSON_ARRAY ? doc->tokens[value].tail : value + 1;
}

static TOOL_UNUSED json_each json_begin(const json_doc *doc, uint32_t container)
{
    json_each it = {JSON_NONE, JSON_NONE, 0, 0, false};

    if (json_typeof(doc, container) < JSON_ARRAY) return it; /* nothing to walk over */
    it.object = json_typeof(doc, container) == JSON_OBJECT;
    it.next = container + 1;
    it.end = doc->tokens[container].tail;
    return it;
}

static TOOL_UNUSED bool json_step(const json_doc *doc, json_each *it)
{
    if (it->next >= it->end) return false;
    it->key = it->object ? it->next : JSON_NONE;
    it->value = it->next + it->object;
    it->next = json__after(doc, it->value);
    return true;
}

/* Members or elements. Walks over them: not for a loop. */
static TOOL_UNUSED uint32_t json_count(const json_doc *doc, uint32_t container)
{
    json_each it = json_begin(doc, container);
    uint32_t n = 0;

    while (json_step(doc, &it)) n++;
    return n;
}

/* NULL and size 0 if it is no string. Ends with a NUL, but may hold others. size may be NULL. */
static TOOL_UNUSED const char *json_string(const json_doc *doc, uint32_t value, size_t *size)
{
    bool is_string = json_typeof(doc, value) == JSON_STRING;

    if (size != NULL) *size = is_string ? doc->tokens[value].tail : 0;
    if (!is_string) return NULL;
    return doc->text + json_offset(doc, value);
}

static TOOL_UNUSED bool json_equals(const json_doc *doc, uint32_t value, const char *text)
{
    size_t size;
    const char *bytes = json_string(doc, value, &size);

    return bytes != NULL && size == strlen(text) && memcmp(bytes, text, size) == 0;
}

/* The value of a key; JSON_NONE if there is none or this is no object. A search from the front: for
   a few keys. Walk over large objects once instead.                                            */
static TOOL_UNUSED uint32_t json_find(const json_doc *doc, uint32_t object, const char *key)
{
    json_each it = json_begin(doc, object);

    if (!it.object) return JSON_NONE;
    while (json_step(doc, &it))
        if (json_equals(doc, it.key, key)) return it.value;
    return JSON_NONE;
}

/* True for JSON null and for an absent value. */
static TOOL_UNUSED bool json_is_null(const json_doc *doc, uint32_t value)
{
    return json_typeof(doc, value) == JSON_NULL;
}

/* How a value looks, for messages: at most 40 characters of it. Returns out. */
static TOOL_UNUSED const char *json_show(const json_doc *doc, uint32_t value, char out[TOOL_QUOTE])
{
    static const char *const names[] = {"null", "false", "true", "", "", "an array", "an object"};
    json_type type = json_typeof(doc, value);
    uint32_t size;
    char quoted[TOOL_QUOTE];

    if (type == JSON_NUMBER || type == JSON_STRING) {
        const char *mark = type == JSON_STRING ? "\"" : "";
        size = doc->tokens[value].tail;
        tool_quote(quoted, doc->text + json_offset(doc, value), size);
        snprintf(out, TOOL_QUOTE, "%s%.100s%s", mark, quoted, mark);
    } else {
        snprintf(out, TOOL_QUOTE, "%s", value == JSON_NONE ? "nothing" : names[type]);
    }
    return out;
}

/* ---- json: numbers ---------------------------------------------------------------------------
   value = digits * 10^exponent, rounded once. Up to 2^53 and 10^22 both are exact doubles, and one
   operation rounds correctly. Otherwise the same in large integers: multiply by the power of ten,
   or shift left and divide by it, remembering in `sticky` whether anything was cut off.        */

#define JSON__WORDS 64 /* 64 digits and 10^330, or 64 digits << 1440: at most 1,653 bits */

typedef struct json__big {
    uint32_t word[JSON__WORDS]; /* little end first */
    int      n;
} json__big;

static TOOL_UNUSED void json__big_step(json__big *big, uint32_t factor, uint32_t add)
{
    uint64_t carry = add;
    int i;

    for (i = 0; i < big->n; i++) {
        carry += (uint64_t)big->word[i] * factor;
        big->word[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry != 0 && big->n < JSON__WORDS) big->word[big->n++] = (uint32_t)carry;
}

static TOOL_UNUSED uint32_t json__big_divide(json__big *big, uint32_t divisor)
{
    uint64_t rest = 0;
    int i;

    for (i = big->n - 1; i >= 0; i--) {
        rest = rest << 32 | big->word[i];
        big->word[i] = (uint32_t)(rest / divisor);
        rest %= divisor;
    }
    while (big->n > 0 && big->word[big->n - 1] == 0) big->n--;
    return (uint32_t)rest;
}

static TOOL_UNUSED bool json__big_bit(const json__big *big, int bit)
{
    return bit >= 0 && (big->word[bit / 32] >> (bit % 32) & 1) != 0;
}

/* big * 2^shift to the nearest double, ties to even; also into the subnormal numbers. */
static TOOL_UNUSED double json__big_round(const json__big *big, int shift, bool sticky)
{
    int bits = big->n * 32;
    int keep, cut, i;
    uint64_t top = 0;

    while (bits > 0 && !json__big_bit(big, bits - 1)) bits--;
    if (bits == 0) return 0;
    keep = bits + shift + 1074; /* bits above 2^-1074 */
    if (keep > 53) keep = 53;
    if (keep < 0) return 0;
    cut = bits - keep;
    for (i = bits - 1; i >= cut; i--) top = top << 1 | (uint64_t)json__big_bit(big, i);
    for (i = 0; i < cut - 1 && !sticky; i++) sticky = json__big_bit(big, i);
    if (json__big_bit(big, cut - 1) && (sticky || (top & 1) != 0)) top++;
    return ldexp((double)top, cut + shift);
}

static TOOL_UNUSED double json__scale(const char *digits, int n_digits, int exponent)
{
    const uint32_t billion = 1000000000;
    json__big big = {{0}, 0};
    bool sticky = false;
    int shift = 0, i;

    for (i = 0; i < n_digits; i++) json__big_step(&big, 10, (uint32_t)(digits[i] - '0'));
    if (exponent < 0) { /* room for all bits that count: 10^n has fewer than 3.4 n bits */
        int words = (-exponent * 17 / 5 + 70) / 32 + 1;
        memmove(big.word + words, big.word, (size_t)big.n * sizeof big.word[0]);
        memset(big.word, 0, (size_t)words * sizeof big.word[0]);
        big.n += words;
        shift = -32 * words;
    }
    for (; exponent >= 9; exponent -= 9) json__big_step(&big, billion, 0);
    for (; exponent > 0; exponent--) json__big_step(&big, 10, 0);
    for (; exponent <= -9; exponent += 9) sticky |= json__big_divide(&big, billion) != 0;
    for (; exponent < 0; exponent++) sticky |= json__big_divide(&big, 10) != 0;
    return json__big_round(&big, shift, sticky);
}

/* Takes a number apart; its syntax was checked by the parser. Returns the number of digits that
   count; the value is digits * 10^*exponent.                                                   */
static TOOL_UNUSED int json__digits(const char *p, size_t size, char digits[JSON_MAX_NUMBER],
                                    int *exponent)
{
    size_t i = p[0] == '-';
    bool fraction = false, down;
    int n = 0, power = 0;

    *exponent = 0;
    for (; i < size && p[i] != 'e' && p[i] != 'E'; i++) {
        if (p[i] == '.') {
            fraction = true;
        } else {
            if (n > 0 || p[i] != '0') digits[n++] = p[i];
            *exponent -= fraction;
        }
    }
    if (i < size) {
        down = p[++i] == '-';
        i += p[i] == '-' || p[i] == '+';
        for (; i < size; i++) power = power > 9999 ? power : power * 10 + (p[i] - '0');
        *exponent += down ? -power : power;
    }
    while (n > 0 && digits[n - 1] == '0') {
        n--;
        *exponent += 1;
    }
    return n;
}

/* The nearest double. False: not a number, or too large for a double. */
static TOOL_UNUSED bool json_double(const json_doc *doc, uint32_t value, double *out)
{
    static const double power[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
                                   1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21,
                                   1e22};
    const char *p;
    char digits[JSON_MAX_NUMBER];
    uint64_t whole = 0;
    int n, exponent, i;
    double x = 0;

    if (json_typeof(doc, value) != JSON_NUMBER) return false;
    p = doc->text + json_offset(doc, value);
    n = json__digits(p, doc->tokens[value].tail, digits, &exponent);
    if (n > 0 && n + exponent > 310) return false;
    if (n <= 15 && exponent >= -22 && exponent <= 22) {
        for (i = 0; i < n; i++) whole = whole * 10 + (uint64_t)(digits[i] - '0');
        x = exponent < 0 ? (double)whole / power[-exponent] : (double)whole * power[exponent];
    } else if (n > 0 && n + exponent > -330) {
        x = json__scale(digits, n, exponent);
    }
    if (x > DBL_MAX) return false;
    *out = p[0] == '-' ? -x : x;
    return true;
}

/* Exactly an integer: digits without fraction or exponent, in the range of int64_t. */
static TOOL_UNUSED bool json_int(const json_doc *doc, uint32_t value, int64_t *out)
{
    const char *p;
    uint64_t x = 0, limit;
    size_t size, i;
    bool negative;

    if (json_typeof(doc, value) != JSON_NUMBER) return false;
    p = doc->text + json_offset(doc, value);
    size = doc->tokens[value].tail;
    negative = p[0] == '-';
    limit = (uint64_t)INT64_MAX + negative;
    for (i = negative; i < size; i++) {
        uint64_t digit = (uint64_t)(p[i] - '0');
        if (p[i] < '0' || p[i] > '9' || x > (limit - digit) / 10) return false;
        x = x * 10 + digit;
    }
    *out = !negative ? (int64_t)x : x == 0 ? 0 : -(int64_t)(x - 1) - 1;
    return true;
}

static TOOL_UNUSED bool json_bool(const json_doc *doc, uint32_t value, bool *out)
{
    json_type type = json_typeof(doc, value);

    if (type != JSON_TRUE && type != JSON_FALSE) return false;
    *out = type == JSON_TRUE;
    return true;
}

/* ---- json: parser ---------------------------------------------------------------------------- */

typedef struct json__parser {
    json_doc  *doc;
    char      *text;
    size_t     size, at;
    uint32_t   capacity;                /* tokens */
    uint32_t   stack[JSON_MAX_DEPTH];   /* open arrays and objects */
    int        depth;
    tool_error *err;
} json__parser;

static TOOL_UNUSED bool json__fail(json__parser *p, size_t at, const char *what)
{
    return tool_fail(p->err, "byte %lu: %s", (unsigned long)at, what);
}

static TOOL_UNUSED void json__space(json__parser *p)
{
    while (p->at < p->size && (p->text[p->at] == ' ' || p->text[p->at] == '\n' ||
                               p->text[p->at] == '\r' || p->text[p->at] == '\t'))
        p->at++;
}

static TOOL_UNUSED bool json__take(json__parser *p, char c)
{
    if (p->at >= p->size || p->text[p->at] != c) return false;
    p->at++;
    return true;
}

static TOOL_UNUSED bool json__add(json__parser *p, json_type type, size_t offset, size_t tail)
{
    json_token *token;

    if (p->doc->n_tokens >= p->capacity) return json__fail(p, offset, "too many values");
    token = &p->doc->tokens[p->doc->n_tokens++];
    token->head = (uint32_t)offset << 3 | (uint32_t)type;
    token->tail = (uint32_t)tail;
    return true;
}

static TOOL_UNUSED bool json__hex4(json__parser *p, uint32_t *code)
{
    int i;

    *code = 0;
    for (i = 0; i < 4; i++, p->at++) {
        char c = p->at < p->size ? p->text[p->at] : '\0';
        uint32_t digit = c >= '0' && c <= '9' ? (uint32_t)(c - '0') :
                         c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a') + 10 :
                         c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A') + 10 : 16;
        if (digit > 15) return json__fail(p, p->at, "\\u needs four hexadecimal digits");
        *code = *code << 4 | digit;
    }
    return true;
}

static TOOL_UNUSED size_t json__encode(char *out, uint32_t code)
{
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char mark[] = {0, 0x00, 0xC0, 0xE0, 0xF0};
    size_t i;

    for (i = n - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)(mark[n] | code);
    return n;
}

/* After the backslash. Writes what it stands for at *out: never longer than the escape. */
static TOOL_UNUSED bool json__escape(json__parser *p, size_t *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    size_t start = p->at - 1;
    char c = p->at < p->size ? p->text[p->at++] : '\0';
    const char *found = c == '\0' ? NULL : strchr(from, c);
    uint32_t code, low;

    if (found != NULL) {
        p->text[(*out)++] = to[found - from];
        return true;
    }
    if (c != 'u') return json__fail(p, start, "unknown escape");
    if (!json__hex4(p, &code)) return false;
    if (code >= 0xD800 && code < 0xE000) {
        if (code >= 0xDC00 || !json__take(p, '\\') || !json__take(p, 'u'))
            return json__fail(p, start, "a surrogate without its pair");
        if (!json__hex4(p, &low)) return false;
        if (low < 0xDC00 || low >= 0xE000)
            return json__fail(p, start, "a surrogate without its pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *out += json__encode(p->text + *out, code);
    return true;
}

static TOOL_UNUSED bool json__string(json__parser *p)
{
    size_t start = ++p->at, out = p->at, length;

    for (;;) {
        unsigned char c;
        if (p->at >= p->size) return json__fail(p, start - 1, "string without an end");
        c = (unsigned char)p->text[p->at];
        if (c == '"') break;
        if (c < 0x20) return json__fail(p, p->at, "control character in a string");
        if (c == '\\') {
            p->at++;
            if (!json__escape(p, &out)) return false;
        } else if (c < 0x80) {
            p->text[out++] = p->text[p->at++];
        } else {
            length = tool_utf8(p->text + p->at, p->size - p->at);
            if (length == 0) return json__fail(p, p->at, "invalid UTF-8");
            memmove(p->text + out, p->text + p->at, length);
            out += length;
            p->at += length;
        }
    }
    p->text[out] = '\0'; /* on the closing quote or before it */
    p->at++;
    return json__add(p, JSON_STRING, start, out - start);
}

static TOOL_UNUSED size_t json__run(json__parser *p) /* of digits */
{
    size_t start = p->at;

    while (p->at < p->size && p->text[p->at] >= '0' && p->text[p->at] <= '9') p->at++;
    return p->at - start;
}

static TOOL_UNUSED bool json__number(json__parser *p)
{
    size_t start = p->at, whole;
    bool zero;

    json__take(p, '-');
    zero = p->at < p->size && p->text[p->at] == '0';
    whole = json__run(p);
    if (whole == 0 || (zero && whole > 1)) return json__fail(p, start, "not a JSON number");
    if (json__take(p, '.') && json__run(p) == 0)
        return json__fail(p, start, "not a JSON number");
    if (json__take(p, 'e') || json__take(p, 'E')) {
        if (!json__take(p, '-')) json__take(p, '+');
        if (json__run(p) == 0) return json__fail(p, start, "not a JSON number");
    }
    if (p->at - start > JSON_MAX_NUMBER)
        return json__fail(p, start, "a number of more than 64 characters");
    return json__add(p, JSON_NUMBER, start, p->at - start);
}

static TOOL_UNUSED bool json__word(json__parser *p)
{
    static const char *const words[] = {"null", "false", "true"};
    size_t i, start = p->at;

    for (i = 0; i < 3; i++) {
        size_t n = strlen(words[i]);
        if (p->size - start >= n && memcmp(p->text + start, words[i], n) == 0) {
            p->at += n;
            return json__add(p, (json_type)i, start, 0);
        }
    }
    if (p->text[start] == 'N' || p->text[start] == 'I')
        return json__fail(p, start, "expected a value (NaN and Infinity are not JSON)");
    return json__fail(p, start, "expected a value");
}

/* A scalar, or the start of an array or object. */
static TOOL_UNUSED bool json__value(json__parser *p)
{
    char c;

    if (p->at >= p->size) return json__fail(p, p->at, "the text ends where a value is expected");
    c = p->text[p->at];
    if (c == '"') return json__string(p);
    if (c == '-' || (c >= '0' && c <= '9')) return json__number(p);
    if (c != '[' && c != '{') return json__word(p);
    if (p->depth >= JSON_MAX_DEPTH) return json__fail(p, p->at, "nested deeper than 64 levels");
    p->stack[p->depth++] = p->doc->n_tokens;
    return json__add(p, c == '[' ? JSON_ARRAY : JSON_OBJECT, p->at++, 0);
}

/* One member, one element, or the end of the innermost open array or object. */
static TOOL_UNUSED bool json__step_in(json__parser *p)
{
    uint32_t top = p->stack[p->depth - 1];
    bool object = json_typeof(p->doc, top) == JSON_OBJECT;

    json__space(p);
    if (json__take(p, object ? '}' : ']')) {
        p->doc->tokens[top].tail = p->doc->n_tokens;
        p->depth--;
        return true;
    }
    if (p->doc->n_tokens > top + 1) {
        if (!json__take(p, ','))
            return json__fail(p, p->at, object ? "expected , or }" : "expected , or ]");
        json__space(p);
    }
    if (object) {
        if (p->at >= p->size || p->text[p->at] != '"')
            return json__fail(p, p->at, "expected a key in quotes");
        if (!json__string(p)) return false;
        json__space(p);
        if (!json__take(p, ':')) return json__fail(p, p->at, "expected :");
        json__space(p);
    }
    return json__value(p);
}

static TOOL_UNUSED bool json__document(json__parser *p)
{
    if (p->size >= 3 && memcmp(p->text, "\xEF\xBB\xBF", 3) == 0)
        return json__fail(p, 0, "a byte order mark: save the file as UTF-8 without one");
    json__space(p);
    if (!json__value(p)) return false;
    while (p->depth > 0)
        if (!json__step_in(p)) return false;
    json__space(p);
    if (p->at < p->size) return json__fail(p, p->at, "text after the end of the document");
    return true;
}

/* At most how many tokens there can be: before every value and key stands the start of the text or
   one of , : [ { outside a string.                                                             */
static TOOL_UNUSED uint64_t json__bound(const char *text, size_t size)
{
    static const unsigned char counts[256] = {[','] = 1, [':'] = 1, ['['] = 1, ['{'] = 1};
    uint64_t n = 1;
    size_t i;

    for (i = 0; i < size; i++) {
        n += counts[(unsigned char)text[i]];
        if (text[i] != '"') continue;
        for (i++; i < size && text[i] != '"'; i++) i += text[i] == '\\';
    }
    return n;
}

static TOOL_UNUSED bool json__twin(json__parser *p, uint32_t key)
{
    char quoted[TOOL_QUOTE];
    size_t size;
    const char *bytes = json_string(p->doc, key, &size);

    return tool_fail(p->err, "byte %lu: the key \"%s\" occurs twice in one object",
                     (unsigned long)json_offset(p->doc, key), tool_quote(quoted, bytes, size));
}

/* A large object: sort its keys. */
static TOOL_UNUSED bool json__unique_sorted(json__parser *p, uint32_t object, uint32_t n)
{
    tool_name *names = tool_alloc(n, sizeof *names, p->err);
    const tool_name *twin;
    json_each it = json_begin(p->doc, object);
    uint32_t i = 0;
    bool ok;

    if (names == NULL) return false;
    while (json_step(p->doc, &it)) {
        size_t size;
        const char *bytes = json_string(p->doc, it.key, &size);
        names[i++] = tool_name_of(bytes, size, it.key);
    }
    twin = tool_names_sort(names, n);
    ok = twin == NULL || json__twin(p, twin->value);
    free(names);
    return ok;
}

static TOOL_UNUSED bool json__unique(json__parser *p, uint32_t object)
{
    enum { few = 16 };
    uint32_t keys[few], n = 0, i;
    json_each it = json_begin(p->doc, object);

    while (json_step(p->doc, &it)) {
        uint32_t size = p->doc->tokens[it.key].tail;
        const char *bytes = json_string(p->doc, it.key, NULL);
        for (i = 0; n < few && i < n; i++)
            if (p->doc->tokens[keys[i]].tail == size &&
                memcmp(json_string(p->doc, keys[i], NULL), bytes, size) == 0)
                return json__twin(p, it.key);
        if (n < few) keys[n] = it.key;
        n++;
    }
    return n <= few || json__unique_sorted(p, object, n);
}

static TOOL_UNUSED void json_free(json_doc *doc)
{
    if (doc->owns_text) free(doc->text);
    free(doc->tokens);
    memset(doc, 0, sizeof *doc);
}

/* Parses text[0..size-1], which is changed in place and has to outlive the document. On failure the
   document is empty and needs no json_free. */
static TOOL_UNUSED bool json_parse(json_doc *doc, char *text, size_t size, tool_error *err)
{
    json__parser p;
    uint64_t bound;
    uint32_t i;
    bool ok;

    memset(doc, 0, sizeof *doc);
    if (size > JSON_MAX_BYTES)
        return tool_fail(err, "%llu bytes of JSON, at most %llu are read",
                         (unsigned long long)size, (unsigned long long)JSON_MAX_BYTES);
    bound = json__bound(text, size);
    if (bound > JSON_MAX_TOKENS)
        return tool_fail(err, "more than %lu values", (unsigned long)JSON_MAX_TOKENS);
    doc->text = text;
    doc->tokens = tool_alloc(bound, sizeof *doc->tokens, err);
    if (doc->tokens == NULL) return false;
    memset(&p, 0, sizeof p);
    p.doc = doc;
    p.text = text;
    p.size = size;
    p.capacity = (uint32_t)bound;
    p.err = err;
    ok = json__document(&p);
    for (i = 0; ok && i < doc->n_tokens; i++)
        if (json_typeof(doc, i) == JSON_OBJECT) ok = json__unique(&p, i);
    if (!ok) json_free(doc);
    return ok;
}

/* Reads and parses a file of at most max_bytes. */
static TOOL_UNUSED bool json_load(json_doc *doc, const char *path, uint64_t max_bytes,
                                  tool_error *err)
{
    char *text;
    size_t size;

    memset(doc, 0, sizeof *doc);
    if (!tool_read_file(path, max_bytes, &text, &size, err)) return false;
    if (!json_parse(doc, text, size, err)) {
        free(text);
        return tool_prefix(err, path);
    }
    doc->owns_text = true;
    return true;
}

/* json_load for a file of a folder that is not trusted; messages name it as folder/name. */
static TOOL_UNUSED bool json_load_inside(json_doc *doc, const char *folder, const char *name,
                                         uint64_t max_bytes, tool_error *err)
{
    char *text;
    size_t size;

    memset(doc, 0, sizeof *doc);
    if (!tool_read_inside(folder, name, max_bytes, &text, &size, err)) return false;
    if (!json_parse(doc, text, size, err)) {
        free(text);
        return tool_prefix(err, name);
    }
    doc->owns_text = true;
    return true;
}

/* ---- json: settings --------------------------------------------------------------------------
   Read one key of an object of settings. Absent or null: *out stays as it is, and all is well. A
   value of another type or out of range fails with the key, the value and what is allowed.     */

static TOOL_UNUSED bool json_get_int(const json_doc *doc, uint32_t object, const char *key,
                                     int64_t low, int64_t high, int64_t *out, tool_error *err)
{
    uint32_t value = json_find(doc, object, key);
    int64_t x;
    char shown[TOOL_QUOTE];

    if (json_is_null(doc, value)) return true;
    if (!json_int(doc, value, &x) || x < low || x > high)
        return tool_fail(err, "\"%s\" is %s, needs an integer from %lld to %lld", key,
                         json_show(doc, value, shown), (long long)low, (long long)high);
    *out = x;
    return true;
}

static TOOL_UNUSED bool json_get_double(const json_doc *doc, uint32_t object, const char *key,
                                        double low, double high, double *out, tool_error *err)
{
    uint32_t value = json_find(doc, object, key);
    double x;
    char shown[TOOL_QUOTE];

    if (json_is_null(doc, value)) return true;
    if (!json_double(doc, value, &x) || x < low || x > high)
        return tool_fail(err, "\"%s\" is %s, needs a number from %g to %g", key,
                         json_show(doc, value, shown), low, high);
    *out = x;
    return true;
}

static TOOL_UNUSED bool json_get_bool(const json_doc *doc, uint32_t object, const char *key,
                                      bool *out, tool_error *err)
{
    uint32_t value = json_find(doc, object, key);
    char shown[TOOL_QUOTE];

    if (json_is_null(doc, value) || json_bool(doc, value, out)) return true;
    return tool_fail(err, "\"%s\" is %s, needs true or false", key, json_show(doc, value, shown));
}

/* Lives as long as the document. */
static TOOL_UNUSED bool json_get_string(const json_doc *doc, uint32_t object, const char *key,
                                        const char **out, size_t *size, tool_error *err)
{
    uint32_t value = json_find(doc, object, key);
    char shown[TOOL_QUOTE];

    if (json_is_null(doc, value)) return true;
    if (json_typeof(doc, value) != JSON_STRING)
        return tool_fail(err, "\"%s\" is %s, needs a string", key, json_show(doc, value, shown));
    *out = json_string(doc, value, size);
    return true;
}

/* ---- json: writing --------------------------------------------------------------------------- */

/* A string in quotes. The bytes have to be UTF-8: check with tool_is_utf8 what is not known. */
static TOOL_UNUSED void json_put_string(tool_buffer *out, const char *bytes, size_t size)
{
    size_t i, start = 0;

    tool_put(out, "\"", 1);
    for (i = 0; i < size; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7F) continue;
        tool_put(out, bytes + start, i - start);
        start = i + 1;
        if (c == '"' || c == '\\')
            tool_putf(out, "\\%c", c);
        else
            tool_putf(out, "\\u%04x", c);
    }
    tool_put(out, bytes + start, size - start);
    tool_put(out, "\"", 1);
}

#endif /* TOOL_JSON_H */
