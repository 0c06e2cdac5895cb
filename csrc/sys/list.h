/* list.h: doubly linked lists of structs with `next` and `prev`; `head` is a pointer to the first. Push and remove, in O(1). */
#ifndef ARENA_LIST_H
#define ARENA_LIST_H

#include <stddef.h>

#define LIST_PUSH(head, node)            \
    do {                                 \
        (node)->prev = NULL;             \
        (node)->next = (head);           \
        if (head) (head)->prev = (node); \
        (head) = (node);                 \
    } while (0)

#define LIST_REMOVE(head, node)                              \
    do {                                                     \
        if ((node)->prev)                                    \
            (node)->prev->next = (node)->next;               \
        else                                                 \
            (head) = (node)->next;                           \
        if ((node)->next) (node)->next->prev = (node)->prev; \
    } while (0)

#endif
