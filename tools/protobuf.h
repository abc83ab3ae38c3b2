/* protobuf.h: walks over the fields of a protobuf message, as much as a SentencePiece model needs.

   pb_next gives one field after the other: 1 = a field, 0 = the end, -1 = damaged. Nothing is
   copied, nothing recurses; a message inside is a field of bytes that gets a reader of its own.
   Varints have at most 10 bytes, lengths are checked against the end, groups and unknown wire
   types are refused. Offsets in messages count from the start of the file.                     */
#ifndef TOOL_PROTOBUF_H
#define TOOL_PROTOBUF_H

#include "common.h"

enum { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_FIXED32 = 5 };

typedef struct pb_reader {
    const unsigned char *file; /* start of the outermost message, for offsets */
    const unsigned char *at, *end;
} pb_reader;

typedef struct pb_field {
    uint32_t    number;
    uint32_t    wire;   /* PB_... */
    uint64_t    value;  /* varint, fixed64, fixed32 */
    const char *bytes;  /* PB_BYTES: points into the file */
    size_t      size;
    size_t      offset; /* where the field begins */
} pb_field;

static TOOL_UNUSED pb_reader pb_begin(const void *data, size_t size)
{
    pb_reader reader;

    reader.file = reader.at = data;
    reader.end = reader.file + size;
    return reader;
}

/* The message inside a field of bytes. */
static TOOL_UNUSED pb_reader pb_inside(const pb_reader *outer, const pb_field *field)
{
    pb_reader reader = pb_begin(field->bytes, field->size);

    reader.file = outer->file;
    return reader;
}

static TOOL_UNUSED int pb__fail(const pb_reader *reader, const char *what, tool_error *err)
{
    tool_fail(err, "byte %lu: %s", (unsigned long)(reader->at - reader->file), what);
    return -1;
}

static TOOL_UNUSED bool pb__varint(pb_reader *reader, uint64_t *value, tool_error *err)
{
    unsigned shift;

    *value = 0;
    for (shift = 0; shift < 70; shift += 7) {
        unsigned char c;
        if (reader->at >= reader->end) {
            pb__fail(reader, "the message ends inside a number", err);
            return false;
        }
        c = *reader->at++;
        if (shift == 63 && c > 1) break;
        *value |= (uint64_t)(c & 127) << shift;
        if (c < 128) return true;
    }
    pb__fail(reader, "a number of more than 64 bits", err);
    return false;
}

static TOOL_UNUSED bool pb__fixed(pb_reader *reader, uint64_t *value, unsigned bytes,
                                  tool_error *err)
{
    unsigned i;

    *value = 0;
    if ((size_t)(reader->end - reader->at) < bytes) {
        pb__fail(reader, "the message ends inside a number", err);
        return false;
    }
    for (i = 0; i < bytes; i++) *value |= (uint64_t)*reader->at++ << (8 * i);
    return true;
}

static TOOL_UNUSED int pb_next(pb_reader *reader, pb_field *field, tool_error *err)
{
    uint64_t tag, length;
    size_t left;

    memset(field, 0, sizeof *field);
    if (reader->at >= reader->end) return 0;
    field->offset = (size_t)(reader->at - reader->file);
    if (!pb__varint(reader, &tag, err)) return -1;
    if (tag >> 3 == 0 || tag >> 3 >= UINT32_C(1) << 29)
        return pb__fail(reader, "a field number that does not exist", err);
    field->number = (uint32_t)(tag >> 3);
    field->wire = (uint32_t)(tag & 7);
    switch (field->wire) {
    case PB_VARINT:
        return pb__varint(reader, &field->value, err) ? 1 : -1;
    case PB_FIXED64:
        return pb__fixed(reader, &field->value, 8, err) ? 1 : -1;
    case PB_FIXED32:
        return pb__fixed(reader, &field->value, 4, err) ? 1 : -1;
    case PB_BYTES:
        if (!pb__varint(reader, &length, err)) return -1;
        left = (size_t)(reader->end - reader->at);
        if (length > left) return pb__fail(reader, "a length that leads past the end", err);
        field->bytes = (const char *)reader->at;
        field->size = (size_t)length;
        reader->at += length;
        return 1;
    default:
        return pb__fail(reader, field->wire < 6 ? "a group (wire type 3 or 4), not supported" :
                        "unknown wire type", err);
    }
}

/* Fails unless the field has the wire type that its number calls for. */
static TOOL_UNUSED bool pb_want(const pb_field *field, uint32_t wire, tool_error *err)
{
    if (field->wire == wire) return true;
    return tool_fail(err, "byte %lu: field %lu has wire type %lu, needs %lu",
                     (unsigned long)field->offset, (unsigned long)field->number,
                     (unsigned long)field->wire, (unsigned long)wire);
}

static TOOL_UNUSED bool pb_bool(const pb_field *field, bool *out, tool_error *err)
{
    *out = field->value != 0;
    return pb_want(field, PB_VARINT, err);
}

/* An int32: negative ones are stored with 64 bits. */
static TOOL_UNUSED bool pb_int32(const pb_field *field, int32_t *out, tool_error *err)
{
    if (!pb_want(field, PB_VARINT, err)) return false;
    if (field->value <= INT32_MAX)
        *out = (int32_t)field->value;
    else if (~field->value <= INT32_MAX)
        *out = -(int32_t)~field->value - 1;
    else
        return tool_fail(err, "byte %lu: field %lu does not fit 32 bits",
                         (unsigned long)field->offset, (unsigned long)field->number);
    return true;
}

static TOOL_UNUSED bool pb_float(const pb_field *field, float *out, tool_error *err)
{
    uint32_t bits = (uint32_t)field->value;

    memcpy(out, &bits, sizeof bits);
    return pb_want(field, PB_FIXED32, err);
}

#endif /* TOOL_PROTOBUF_H */
